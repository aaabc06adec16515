"""Distillation: a student learns to answer as the original network does.

options    what can be asked for
student    the user's, or the network with fewer layers, or the network as it is (recovery)
loss       soft and hard targets, squared error of values, cosines
features   inner outputs that shall point the same way
teacher    the original, asked each time or once
aware      the student computes in int8 while it learns
labels     which output the labels are of
objective  what the training loop is given

The loop is `chain.training`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgepack.chain.distill.options import DistillOptions
from edgepack.chain.distill.student import make_student, recipe_of
from edgepack.chain.module import Context, ModuleResult


def distill(module: Any, options: DistillOptions, context: Context) -> ModuleResult:
    """Train a student on the teacher's answers, and on labels where there are any.

    Args:
        module: the network as the passes before left it: the student, or what it is made of.
        options: which student, which loss, and how it is trained.
        context: the original network, which teaches, and the training samples.

    Raises:
        ChainError: distill-layers, distill-student, distill-outputs, distill-labels,
            distill-features, distill-nothing, distill-none-held-out, distill-no-gate,
            distill-fold, distill-aware, and those of the training loop.
        SourceError: the student's factory cannot be used.
        HostError: accelerate is not installed, or the disk is full.
    """
    from edgepack.chain.distill.objective import Distillation
    from edgepack.chain.training.data import TrainingSet
    from edgepack.chain.training.device import make_accelerator
    from edgepack.chain.training.loop import Loop

    recipe = recipe_of(module, options)
    student = make_student(module, recipe, context)
    if options.student:
        # What is zero in it was not pruned: it is as its factory begins it.
        options = replace(options, keep_zeros=False)
    aware = None
    if options.aware:
        from edgepack.chain.distill.aware import Aware

        aware = Aware(student, context)
        recipe |= aware.recipe
        options = replace(options, precision="fp32")
    accelerator = make_accelerator(options)
    data = TrainingSet(context, options, accelerator)
    teacher = context.original
    if accelerator.device.type != "cpu":
        teacher = copy.deepcopy(teacher).to(accelerator.device)
    objective = Distillation(teacher, student, data, context, options)
    attached = aware.attach(data) if aware else None
    try:
        loop = Loop(
            student, objective, data.plan, options, accelerator, context.work, context.progress
        )
        trained = loop.run()
    finally:
        objective.close()
        if attached is not None:
            attached.close()
    details = _details(student, data, objective, trained)
    notes = _notes(options, recipe, data, details)
    if aware:
        details["aware"] = aware.details()
        notes += aware.notes()
    return ModuleResult(student, True, notes, details, recipe)


def replay(module: Any, recipe: Mapping[str, Any], context: Context) -> Any:
    """The student that was trained, weights aside."""
    student = make_student(module, recipe, context)
    if "folded" in recipe:
        from edgepack.chain.aware.fold import fold_structure

        fold_structure(student, recipe["folded"])
    return student


def _details(student: Any, data: Any, objective: Any, trained: Any) -> dict[str, Any]:
    """The figures for the ledger."""
    return {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "samples": data.store.count,
        "labelled": data.labelled,
        "held_out": len(data.held),
        "score": objective.score_name,
        "scores": [round(score, 6) for score in trained.scores],
        "teacher_score": objective.teacher_score,
        "loss": round(trained.loss, 6),
        "epochs": trained.epochs,
        "kept_epoch": trained.kept,
        "steps": trained.steps,
        "resumed_at": trained.resumed,
        "precision": trained.precision,
        "device": trained.device,
        "processes": trained.processes,
        "pruned_tensors": trained.masks,
    }


def _notes(
    options: DistillOptions, recipe: Mapping[str, Any], data: Any, details: Mapping[str, Any]
) -> tuple[str, ...]:
    who = "The network as it was"
    if "student" in recipe:
        who = f"The student of {recipe['student'].rpartition(':')[2]}"
    elif "keep" in recipe:
        who = f"The layers {', '.join(map(str, recipe['keep']))} of {recipe['list']}"
    soft = "the original's answers" if options.alpha > 0 else "labels alone"
    notes = [
        f"{who} learnt from {soft}: {details['samples']:,} samples, {details['labelled']:,} with a "
        f"label, {details['epochs']} epochs."
    ]
    if details["scores"]:
        kept = details["scores"][details["kept_epoch"] - 1]
        found = f"Its {details['score']} is {kept:.4g} on {details['held_out']:,} samples held out"
        if details["teacher_score"] is not None:
            found += f", the original's {details['teacher_score']:.4g}"
        notes.append(found + ".")
    if details["epochs"] < options.epochs or details["kept_epoch"] < details["epochs"]:
        notes.append(
            f"It ended after epoch {details['epochs']} of {options.epochs} (stop={options.stop}); "
            f"the weights are those after epoch {details['kept_epoch']}."
        )
    if details["pruned_tensors"]:
        notes.append(f"The zeros of {details['pruned_tensors']} pruned tensors stayed zero.")
    if details["processes"] > 1:
        notes.append(
            f"Trained by {details['processes']} processes: their number decides the last bits."
        )
    return tuple(notes)
