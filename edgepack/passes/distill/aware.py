"""Int8 arithmetic of the student during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from edgepack.errors import ChainError
from edgepack.passes.aware.attach import Attached
from edgepack.passes.aware.fold import find_folds, fold
from edgepack.passes.aware.sites import find_sites
from edgepack.passes.distill.teacher import call_student
from edgepack.passes.module import ModuleContext
from edgepack.passes.network import group_by_reason, make_arguments
from edgepack.passes.quantize.options import NAME as QUANTIZE
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.training.training_set import TrainingSet

if TYPE_CHECKING:
    import torch
    from torch import nn

# Training samples on which the first ranges are measured.
OBSERVED = 512


class Aware:
    """Prepares a student for int8 training; its batch norms are folded for good.

    Args:
        student: in eval mode, on the CPU.
        context: of the pass.

    Raises ChainError: distill-student, distill-fold, distill-aware.
    """

    def __init__(self, student: nn.Module, context: ModuleContext) -> None:
        import torch

        self.student = student
        later = context.later.get(QUANTIZE) or QuantizeOptions()
        self.options = cast("QuantizeOptions", later)
        example = make_arguments(context, context.example)
        # Fails with a clear error here, rather than while its calls are traced.
        with torch.no_grad():
            call_student(student, [tensor.clone() for tensor in example])
        self.folds, self.unfolded = find_folds(student, example)
        fold(student, self.folds, example)
        self.sites = find_sites(student, example, self.options.mode, self.options.conv3d)
        if not self.sites.layers:
            raise ChainError(
                "distill-aware",
                "no layer of the network can be trained for int8",
                why="; ".join(group_by_reason(self.sites.skipped))
                or "it has no convolution or linear layer",
                hint="aware=false: quantize needs no training",
            )

    @property
    def recipe(self) -> dict[str, object]:
        """Return the part of the recipe that records the folded batch norms."""
        return {"folded": dict(self.folds)}

    def attach(self, data: TrainingSet) -> Attached:
        """Attach fake quantization to the student, until the result is closed."""

        def batches() -> Iterator[tuple[torch.Tensor, ...]]:
            # The first batches that the training will read.
            count = 0
            for step in data.plan.epoch(0):
                for members in step:
                    yield tuple(tensor.cpu() for tensor in data.feed(members))
                    count += len(members)
                if count >= OBSERVED:
                    return

        return Attached(self.student, self.sites, self.options, batches)

    def details(self) -> dict[str, object]:
        """Return the figures for the ledger."""
        return {
            "layers": len(self.sites.layers),
            "outputs": len(self.sites.outputs),
            "folded": len(self.folds),
            "left": {**self.sites.skipped, **self.unfolded},
        }

    def notes(self) -> tuple[str, ...]:
        """Return the notes on the layers trained for int8, and on the others."""
        folded = len(self.folds)
        notes = [
            f"Trained in the arithmetic of quantize ({self.options.mode}, {self.options.scheme}): "
            f"{len(self.sites.layers)} layers in integers, "
            f"{folded} batch norm{'s' * (folded != 1)} folded into the layers before."
        ]
        for sentence in group_by_reason(self.sites.skipped):
            notes.append(f"Trained as float: {sentence}.")
        for sentence in group_by_reason(self.unfolded):
            notes.append(f"Batch norm not folded: {sentence}.")
        return (*notes, *self._advise())

    def _advise(self) -> tuple[str, ...]:
        """Return a note if options of the later `quantize` undo part of the training."""
        undone = []
        if self.options.rounding != "nearest":
            undone.append("rounding=nearest")
        if self.options.bias_correction:
            undone.append("bias_correction=false")
        if not undone:
            return ()
        return (
            "quantize rounds the float weights again, which undoes part of the training: "
            f"--chain ...,quantize:{':'.join(undone)} preserves it.",
        )
