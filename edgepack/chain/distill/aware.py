"""The student computes in int8 while it learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgepack.chain.aware.attach import Attached
from edgepack.chain.aware.fold import find_folds, fold
from edgepack.chain.aware.sites import find_sites
from edgepack.chain.distill.teacher import answer_of
from edgepack.chain.module import Context
from edgepack.chain.network import arguments, grouped
from edgepack.chain.quantize import QuantizeOptions
from edgepack.chain.training.data import TrainingSet
from edgepack.errors import ChainError

# Training samples on which the first ranges are measured.
OBSERVED = 512


class Aware:
    """A student prepared for int8: its batch norms are folded, and stay so.

    Args:
        student: in eval mode, on the CPU.
        context: of the pass.

    Raises ChainError: distill-student, distill-fold, distill-aware.
    """

    def __init__(self, student: Any, context: Context) -> None:
        import torch

        self.student = student
        self.options = context.quantize or QuantizeOptions()
        example = arguments(context, context.example)
        with torch.no_grad():
            answer_of(student, [tensor.clone() for tensor in example])
        self.folds, self.unfolded = find_folds(student, example)
        fold(student, self.folds, example)
        self.sites = find_sites(student, example, self.options.mode, self.options.conv3d)
        if not self.sites.layers:
            raise ChainError(
                "distill-aware",
                "no layer of the network can be trained for int8",
                why="; ".join(grouped(self.sites.left)) or "it has no convolution or linear layer",
                hint="aware=false: quantize needs no training",
            )

    @property
    def recipe(self) -> dict[str, Any]:
        """What was done to the structure."""
        return {"folded": dict(self.folds)}

    def attach(self, data: TrainingSet) -> Attached:
        """Let the student compute in int8, until what is returned is closed."""

        def batches() -> Iterator[tuple[Any, ...]]:
            count = 0
            for step in data.plan.epoch(0):
                for members in step:
                    yield tuple(tensor.cpu() for tensor in data.feed(members))
                    count += len(members)
                if count >= OBSERVED:
                    return

        return Attached(self.student, self.sites, self.options, batches)

    def details(self) -> dict[str, Any]:
        """The figures for the ledger."""
        return {
            "layers": len(self.sites.layers),
            "outputs": len(self.sites.outputs),
            "folded": len(self.folds),
            "left": {**self.sites.left, **self.unfolded},
        }

    def notes(self) -> tuple[str, ...]:
        """The same in sentences."""
        folded = len(self.folds)
        done = (
            f"It computed as quantize makes it ({self.options.mode}, {self.options.scheme}): "
            f"{len(self.sites.layers)} layers in integers, "
            f"{folded} batch norm{'s' * (folded != 1)} folded into the layers before."
        )
        left = [f"Trained as float: {found}." for found in grouped(self.sites.left)]
        stay = [f"Batch norm not folded: {found}." for found in grouped(self.unfolded)]
        return (done, *left, *stay, *self._advice())

    def _advice(self) -> tuple[str, ...]:
        """What the `quantize` that follows undoes of what was learnt."""
        undone = []
        if self.options.rounding != "nearest":
            undone.append("rounding=nearest")
        if self.options.bias_correction:
            undone.append("bias_correction=false")
        if not undone:
            return ()
        return (
            "quantize rounds for the float weights anew, which loses a part of what was learnt: "
            f"--chain ...,quantize:{':'.join(undone)} keeps it.",
        )
