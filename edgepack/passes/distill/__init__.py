"""Distillation: train a student to reproduce the outputs of the original network.

options    the options of the pass
student    the student: built by the user, or the network with fewer layers, or unchanged (recovery)
loss       soft and hard targets, squared error of values, cosine distance
features   outputs of inner parts of both networks, and their distance
teacher    outputs of the original network, computed for each batch or once
aware      int8 arithmetic of the student during training
labels     choice of the output that the labels refer to
objective  objective of the training loop
figures    figures and notes for the ledger

The loop itself is `passes.training`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.passes.distill.figures import collect_figures, format_notes
from edgepack.passes.distill.options import DistillOptions
from edgepack.passes.distill.student import make_recipe, make_student
from edgepack.passes.module import ModuleContext, ModuleResult, Recipe
from edgepack.passes.protocol import ModulePass

if TYPE_CHECKING:
    from torch import nn


def distill(module: nn.Module, options: DistillOptions, context: ModuleContext) -> ModuleResult:
    """Train a student on the teacher's outputs, and on the labels of samples that have one.

    Args:
        module: the network after the passes before; it is the student, or becomes it.
        options: of the student, its loss and its training.
        context: the original network, which is the teacher, and the training samples.

    Raises:
        ChainError: distill-layers, distill-student, distill-outputs, distill-labels,
            distill-features, distill-nothing, distill-none-held-out, distill-no-gate,
            distill-fold, distill-aware, and those of the training loop.
        SourceError: the student's factory cannot be used.
        HostError: accelerate is not installed, or the disk is full.
    """
    from edgepack.passes.distill.objective import Distillation
    from edgepack.passes.training.device import make_accelerator
    from edgepack.passes.training.loop import Loop
    from edgepack.passes.training.training_set import TrainingSet

    recipe = make_recipe(module, options)
    student = make_student(module, recipe, context)
    if options.student:
        # Zeros of a new network were set by its factory, not by prune.
        options = replace(options, keep_zeros=False)
    awareness = None
    if options.aware:
        from edgepack.passes.distill.aware import Aware

        awareness = Aware(student, context)
        recipe |= awareness.recipe
        # Steps of 1 / 256 need more precision than a half has.
        options = replace(options, precision="fp32")
    accelerator = make_accelerator(options)
    data = TrainingSet(context, options, accelerator)
    teacher = context.original
    # A copy, since later passes still need the original on the CPU.
    if accelerator.device.type != "cpu":
        teacher = copy.deepcopy(teacher).to(accelerator.device)
    objective = Distillation(teacher, student, data, context, options)
    attached = None
    if awareness:
        # After the objective, which compares the student's float outputs with the teacher's.
        attached = awareness.attach(data)
    try:
        loop = Loop(
            student, objective, data.plan, options, accelerator, context.work, context.progress
        )
        trained = loop.run()
    finally:
        objective.close()
        if attached is not None:
            attached.close()
    figures = collect_figures(student, data, objective, trained)
    details: dict[str, object] = {**figures}
    notes = format_notes(options, recipe, figures)
    if awareness:
        details["aware"] = awareness.details()
        notes += awareness.notes()
    return ModuleResult(student, True, notes, details, recipe)


def replay(module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
    """Rebuild the structure of the trained student, without its weights."""
    student = make_student(module, recipe, context)
    if "folded" in recipe:
        from edgepack.passes.aware.fold import fold_structure

        fold_structure(student, recipe["folded"])
    return student


class Distill(ModulePass[DistillOptions]):
    """Train a student on the outputs of the original."""

    name = DistillOptions.NAME
    options = DistillOptions

    def advice(self) -> str:
        """Suggest how to lose less quality."""
        return "train longer or on more samples"

    def apply(
        self, module: nn.Module, options: DistillOptions, context: ModuleContext
    ) -> ModuleResult:
        """Return the changed network with its recipe."""
        return distill(module, options, context)

    def replay(self, module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
        """Rebuild the structure of a recipe."""
        return replay(module, recipe, context)
