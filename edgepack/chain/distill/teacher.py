"""The original network as the teacher: asked each time, or once and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.chain.distill.loss import Head, are_probabilities
from edgepack.chain.training.data import TrainingSet
from edgepack.data.store import Rows, Store, store
from edgepack.errors import ChainError
from edgepack.ledger import Progress
from edgepack.runtime.tensor import Tensor

# The answers are kept on disk up to this size; beyond it the teacher is asked each time.
ANSWERS_BYTES = 8 << 30
# Samples on which the variance of its values is measured.
MEASURED = 1024


class Teacher:
    """The teacher's answers to the training samples.

    Args:
        network: the original, in eval mode, on the device of `data`.
        data: the training samples.
    """

    def __init__(self, network: Any, data: TrainingSet) -> None:
        self.network, self.data = network, data
        self.kept: Store | None = None
        self.everything = np.arange(data.store.count)

    def ask(self, feed: Sequence[Any]) -> tuple[Any, ...]:
        """Its outputs; a network may write into its inputs, and the student's are the same."""
        from edgepack.chain.network import ask

        return tuple(ask(self.network, feed))

    def answers(self, members: np.ndarray, feed: Sequence[Any]) -> Mapping[int, Any]:
        """Its outputs to some samples, by their index; `feed` is what the student sees of them."""
        import torch

        if self.kept is None:
            return dict(enumerate(self.ask(feed)))
        return {
            int(name): torch.from_numpy(self.kept.rows(name, members)).to(self.data.device)
            for name in self.kept.names
        }

    def keep(self, heads: Sequence[Head], folder: Path, progress: Progress) -> None:
        """Ask for all samples once, where the answers are not too large to be kept."""
        first = next(self.data.batches(self.everything))
        size = sum(array.nbytes for array in self._arrays(first, heads).values()) / len(first)
        if size * self.data.store.count > ANSWERS_BYTES:
            return

        def rows() -> Iterator[Rows]:
            done = 0
            for members in self.data.batches(self.everything):
                yield members, self._arrays(members, heads), self.data.store.is_whole(members)
                done += len(members)
                progress.tell(f"the teacher answered {done:,} of {len(self.everything):,} samples")

        self.kept = store(folder, rows)

    def _arrays(self, members: np.ndarray, heads: Sequence[Head]) -> dict[str, np.ndarray]:
        outputs = self.ask(self.data.feed(members))
        return {str(head.index): outputs[head.index].cpu().numpy() for head in heads}

    def heads(self, student: Any, tensors: Sequence[Tensor]) -> tuple[Head, ...]:
        """The outputs that can be learnt; the student, on the CPU still, must answer alike.

        Raises ChainError: distill-student, distill-outputs, distill-nothing.
        """
        import torch

        members = next(self.data.batches(self.everything))
        feed = self.data.feed(members)
        theirs = [output.cpu() for output in self.ask(feed)]
        with torch.no_grad():
            ours = answer_of(student, [tensor.cpu() for tensor in feed])
        shapes = [[list(output.shape) for output in answer] for answer in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise _unlike(f"of a batch its outputs are {shapes[0]}, the teacher's {shapes[1]}")
        heads = []
        for index, (tensor, one, other) in enumerate(zip(tensors, ours, theirs, strict=True)):
            if not other.is_floating_point():
                continue
            if not self.data.store.is_whole(members):
                _check_batch(tensor, other, len(members))
            scores = tensor.kind == "scores"
            soft = scores and are_probabilities(other.movedim(tensor.axis, -1))
            if scores and are_probabilities(one.movedim(tensor.axis, -1)) != soft:
                raise _unlike(f"one gives probabilities as {tensor.name}, the other scores")
            heads.append(Head(index, tensor, soft, 1.0 if scores else self._variance(index)))
        if not heads:
            raise ChainError(
                "distill-nothing",
                "the network has no output that could be learnt",
                why="none of them is floating point",
                hint="let it return its scores",
            )
        return tuple(heads)

    def _variance(self, index: int) -> float:
        """The variance of one of its outputs, over some samples."""
        import torch

        values, count = [], 0
        for members in self.data.batches(self.everything):
            values.append(self.ask(self.data.feed(members))[index].double().cpu().flatten())
            count += len(members)
            if count >= MEASURED:
                break
        return max(float(torch.cat(values).var(correction=0)), 1e-12)


def outputs_of(answer: Any) -> tuple[Any, ...]:
    """A network's answer as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)


def answer_of(student: Any, feed: Sequence[Any]) -> tuple[Any, ...]:
    """A student's outputs. Raises ChainError `distill-student` where it does not run."""
    try:
        return outputs_of(student(*feed))
    except Exception as error:  # whatever the user's network raises
        fed = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in feed)
        raise _unlike(f"{type(error).__name__}: {error}\nfed: {fed}") from error


def _check_batch(tensor: Tensor, output: Any, count: int) -> None:
    if output.ndim == 0 or output.shape[0] != count:
        raise ChainError(
            "distill-outputs",
            f"the output {tensor.name} has no axis for the samples of a batch",
            why=f"of {count} samples its shape is {list(output.shape)}",
            hint="give the training samples as whole feeds: one axis more, array[i] as it is",
        )


def _unlike(why: str) -> ChainError:
    return ChainError(
        "distill-student",
        "the student does not answer as its teacher does",
        why=why,
        hint="the device expects the original's outputs: same number, order, shapes and meaning",
    )
