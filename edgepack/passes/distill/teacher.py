"""Outputs of the original network, the teacher: computed for each batch, or once and stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data.store import Rows, Store, store
from edgepack.errors import ChainError
from edgepack.ledger import Progress
from edgepack.passes.distill.loss import Head, are_probabilities
from edgepack.passes.training.training_set import TrainingSet
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    import torch
    from torch import nn

# Outputs are stored on disk up to this size; beyond it they are computed for each batch.
ANSWERS_BYTES = 8 << 30
# Number of samples on which the variance of the teacher's values is measured.
MEASURED = 1024


class Teacher:
    """Teacher's outputs for the training samples.

    Args:
        network: the original, in eval mode, on the device of `data`.
        data: the training samples.
    """

    def __init__(self, network: nn.Module, data: TrainingSet) -> None:
        self.network, self.data = network, data
        self.stored: Store | None = None
        self.everything = np.arange(data.store.count)

    def ask(self, feed: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the outputs for a feed, which is cloned: the network may write into its inputs."""
        from edgepack.passes.network import run_network

        return tuple(run_network(self.network, feed))

    def answers(
        self, members: np.ndarray, feed: Sequence[torch.Tensor]
    ) -> Mapping[int, torch.Tensor]:
        """Return the outputs for some samples by output index.

        Args:
            members: positions of the samples.
            feed: the inputs that the student gets for them, augmented or not.
        """
        import torch

        if self.stored is None:
            return dict(enumerate(self.ask(feed)))
        answers = {}
        for name in self.stored.names:
            rows = torch.from_numpy(self.stored.rows(name, members))
            answers[int(name)] = rows.to(self.data.device)
        return answers

    def store_outputs(self, heads: Sequence[Head], folder: Path, progress: Progress) -> None:
        """Store the outputs for all samples, unless they exceed `ANSWERS_BYTES`."""
        # Bytes per sample, measured on the first batch.
        first = next(self.data.batches(self.everything))
        arrays = self._compute_arrays(first, heads).values()
        size = sum(array.nbytes for array in arrays) / len(first)
        if size * self.data.store.count > ANSWERS_BYTES:
            return

        def rows() -> Iterator[Rows]:
            count = 0
            for members in self.data.batches(self.everything):
                arrays = self._compute_arrays(members, heads)
                yield members, arrays, self.data.store.is_whole(members)
                count += len(members)
                progress.tell(f"teacher outputs: {count:,} of {len(self.everything):,} samples")

        self.stored = store(folder, rows)

    def _compute_arrays(self, members: np.ndarray, heads: Sequence[Head]) -> dict[str, np.ndarray]:
        """Return the outputs for some samples as arrays, by output index."""
        outputs = self.ask(self.data.feed(members))
        return {str(head.index): outputs[head.index].cpu().numpy() for head in heads}

    def heads(self, student: nn.Module, tensors: Sequence[Tensor]) -> tuple[Head, ...]:
        """Return the outputs that can be learnt, and check those of the student against them.

        Raises ChainError: distill-student, distill-outputs, distill-nothing.
        """
        import torch

        members = next(self.data.batches(self.everything))
        feed = self.data.feed(members)
        theirs = [output.cpu() for output in self.ask(feed)]
        with torch.no_grad():
            ours = call_student(student, [tensor.cpu() for tensor in feed])
        # Inputs and outputs of the bundle are those of the original, so the student's must match.
        shape, teacher_shape = _list_shapes(ours), _list_shapes(theirs)
        if shape != teacher_shape:
            raise _make_mismatch(
                f"for a batch its outputs are {shape}, the teacher's {teacher_shape}"
            )
        heads = []
        for index, outputs in enumerate(zip(tensors, ours, theirs, strict=True)):
            tensor, student_output, teacher_output = outputs
            # Integer outputs, such as an argmax, have no gradient.
            if not teacher_output.is_floating_point():
                continue
            if not self.data.store.is_whole(members):
                _check_batch(tensor, teacher_output, len(members))
            # A softmax may be part of both networks or of none.
            scores = tensor.kind == "scores"
            soft = scores and are_probabilities(teacher_output.movedim(tensor.axis, -1))
            if scores and are_probabilities(student_output.movedim(tensor.axis, -1)) != soft:
                raise _make_mismatch(
                    f"{tensor.name} is probabilities in one and scores in the other"
                )
            # The loss of scores has no unit; that of values is relative to their variance.
            scale = 1.0
            if not scores:
                scale = self._measure_variance(index)
            heads.append(Head(index, tensor, soft, scale))
        if not heads:
            raise ChainError(
                "distill-nothing",
                "the network has no output to learn",
                why="none of its outputs is floating point",
                hint="let it return its scores",
            )
        return tuple(heads)

    def _measure_variance(self, index: int) -> float:
        """Return the variance of an output over the first samples."""
        import torch

        values, count = [], 0
        for members in self.data.batches(self.everything):
            values.append(self.ask(self.data.feed(members))[index].double().cpu().flatten())
            count += len(members)
            if count >= MEASURED:
                break
        return max(float(torch.cat(values).var(correction=0)), 1e-12)


def _list_shapes(outputs: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return the shape of each output."""
    return [list(output.shape) for output in outputs]


def to_outputs(answer: object) -> tuple[torch.Tensor, ...]:
    """Return a network's outputs as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)


def call_student(student: nn.Module, feed: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return a student's outputs. Raises ChainError `distill-student` if it fails."""
    try:
        return to_outputs(student(*feed))
    except Exception as error:  # whatever the user's network raises
        description = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in feed)
        raise _make_mismatch(f"{type(error).__name__}: {error}\ninputs: {description}") from error


def _check_batch(tensor: Tensor, output: torch.Tensor, count: int) -> None:
    """Raise ChainError distill-outputs unless axis 0 of an output counts the samples."""
    if output.ndim == 0 or output.shape[0] != count:
        raise ChainError(
            "distill-outputs",
            f"the output {tensor.name} has no axis for the samples of a batch",
            why=f"for {count} samples its shape is {list(output.shape)}",
            hint="give the training samples as whole feeds: one axis more, array[i] as it is",
        )


def _make_mismatch(why: str) -> ChainError:
    """Return the error for a student with other outputs than the teacher."""
    return ChainError(
        "distill-student",
        "the student's outputs do not match the teacher's",
        why=why,
        hint="the device expects the original's outputs: same number, order, shapes and meaning",
    )
