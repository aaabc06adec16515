"""Figures and notes of a distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from edgepack.passes.distill.options import DistillOptions
from edgepack.passes.module import Recipe

if TYPE_CHECKING:
    from torch import nn

    from edgepack.passes.distill.objective import Distillation
    from edgepack.passes.training.loop import Trained
    from edgepack.passes.training.training_set import TrainingSet


class Figures(TypedDict):
    """Figures for the ledger.

    Attributes:
        parameters: of the student.
        samples: number of training samples, including the held-out ones.
        labelled: number of those with a label.
        held_out: number of held-out samples.
        score: kind of their score: "top-1", "agreement" or "SNR in dB".
        scores: held-out score of each epoch.
        teacher_score: score of the original; None unless the score is top-1.
        loss: mean loss of the last epoch's steps.
        epochs: number of epochs that ran.
        kept_epoch: the epoch of the final weights, counted from 1.
        steps: number of optimizer steps.
        resumed_at: the step at which this build resumed; 0 from the beginning.
        precision: precision of the layers.
        device: device of the training.
        processes: number of processes.
        pruned_tensors: number of parameters with preserved zeros.
    """

    parameters: int
    samples: int
    labelled: int
    held_out: int
    score: str
    scores: list[float]
    teacher_score: float | None
    loss: float
    epochs: int
    kept_epoch: int
    steps: int
    resumed_at: int
    precision: str
    device: str
    processes: int
    pruned_tensors: int


def collect_figures(
    student: nn.Module, data: TrainingSet, objective: Distillation, trained: Trained
) -> Figures:
    """Return the figures for the ledger."""
    return {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "samples": data.store.count,
        "labelled": data.labelled,
        "held_out": len(data.held_out),
        "score": objective.score_name,
        "scores": [round(score, 6) for score in trained.scores],
        "teacher_score": objective.teacher_score,
        "loss": round(trained.loss, 6),
        "epochs": trained.epochs,
        "kept_epoch": trained.weights_epoch,
        "steps": trained.steps,
        "resumed_at": trained.resumed,
        "precision": trained.precision,
        "device": trained.device,
        "processes": trained.processes,
        "pruned_tensors": trained.masks,
    }


def format_notes(options: DistillOptions, recipe: Recipe, figures: Figures) -> tuple[str, ...]:
    """Return the notes of the pass."""
    student = "the network"
    if "student" in recipe:
        # "nets.py:small" is the student of small.
        student = f"the student of {recipe['student'].rpartition(':')[2]}"
    elif "keep" in recipe:
        student = f"layers {', '.join(map(str, recipe['keep']))} of {recipe['list']}"
    targets = "labels only"
    if options.alpha > 0:
        targets = "the original's outputs"
    notes = [
        f"Trained {student} on {targets}: {figures['samples']:,} samples, {figures['labelled']:,} "
        f"with a label, {figures['epochs']} epochs."
    ]
    if figures["scores"]:
        # Epochs count from 1.
        score = figures["scores"][figures["kept_epoch"] - 1]
        sentence = f"{figures['score']} on {figures['held_out']:,} held-out samples: {score:.4g}"
        if figures["teacher_score"] is not None:
            sentence += f", original {figures['teacher_score']:.4g}"
        notes.append(sentence + ".")
    # Either the training ended early, or an earlier epoch than the last had the best score.
    if figures["epochs"] < options.epochs or figures["kept_epoch"] < figures["epochs"]:
        notes.append(
            f"Training ended after epoch {figures['epochs']} of {options.epochs} "
            f"(stop={options.stop}); the weights are those of epoch {figures['kept_epoch']}."
        )
    if figures["pruned_tensors"]:
        notes.append(f"The zeros of {figures['pruned_tensors']} pruned tensors stayed zero.")
    if figures["processes"] > 1:
        notes.append(
            f"Trained by {figures['processes']} processes; another number changes the last bits."
        )
    return tuple(notes)
