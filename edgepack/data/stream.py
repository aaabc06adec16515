"""Samples as a stream: pieces as a source stores them, gathered to what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepack.data.samples import Batch, Samples
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor


def add_array(digest: Any, name: str, values: np.ndarray) -> None:
    """Add an array to a digest of `hashlib`: its name, type, shape and values."""
    values = np.ascontiguousarray(values)
    digest.update(f"{name}:{values.dtype.str}:{values.shape};".encode())
    digest.update(values.reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Piece:
    """Samples as a source gives them.

    Attributes:
        inputs: one array per input, in the input's rank and dtype.
        labels: along axis 0, one per sample, where there are any.
        count: number of samples.
        divisible: axis 0 of every array is the batch, so that pieces can be cut and joined;
            otherwise the piece is one whole feed and counts as one sample.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    count: int
    divisible: bool

    def split(self, count: int) -> tuple[Piece, Piece | None]:
        """The first `count` samples, and the others, where there are any."""
        if count >= self.count:
            return self, None
        return self._cut(slice(None, count)), self._cut(slice(count, None))

    def _cut(self, part: slice) -> Piece:
        return Piece(
            {name: array[part] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[part],
            len(range(self.count)[part]),
            self.divisible,
        )

    def alike(self, other: Piece) -> bool:
        """Whether the two can be joined."""
        return (self.labels is None) == (other.labels is None) and all(
            array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items()
        )


@dataclass(frozen=True)
class SampleStream:
    """The `Samples` of every source.

    Attributes:
        origin: where they come from, in words, for the report.
        pieces: all samples from the first, at most so many in a divisible piece; each piece
            is checked against the inputs.
        exact: number of samples in every batch, where the model's batch axis is fixed.
        notes: what was done to make them fit, whole sentences.
    """

    origin: str
    pieces: Callable[[int], Iterator[Piece]]
    exact: int | None
    notes: tuple[str, ...] = ()

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples from the first, at most `size` of them in a batch.

        Where the model's batch axis is fixed, every batch has exactly that many, and a rest
        that does not fill one is left out (`lint` warns of it). Samples of different sizes
        along a dynamic axis do not share a batch.

        Raises:
            DataError: a sample does not fit the model's inputs.
        """
        size = self.exact or size
        if size < 1:
            raise ValueError(f"a batch holds at least one sample, not {size}")
        held: list[Piece] = []
        for piece in self.pieces(size):
            if held and not (piece.divisible and piece.alike(held[0])):
                yield from self._close(held, piece)
                held = []
            rest: Piece | None = piece
            while rest is not None:
                room = size - sum(part.count for part in held)
                head, rest = rest.split(room) if piece.divisible else (rest, None)
                held.append(head)
                if not piece.divisible or head.count == room:
                    yield _join(held)
                    held = []
        if held and self.exact is None:
            yield _join(held)

    def _close(self, held: list[Piece], following: Piece) -> Iterator[Batch]:
        """The batch that ends early because what follows is of another size."""
        if self.exact is not None:
            shapes = [
                {name: array.shape[1:] for name, array in piece.inputs.items()}
                for piece in (held[0], following)
            ]
            raise DataError(
                "samples-sizes-differ",
                f"samples of different sizes cannot share the model's batch of {self.exact}",
                why=f"{shapes[0]} is followed by {shapes[1]}",
                hint="pad the samples to one size, or export the model with a dynamic batch",
            )
        yield _join(held)


def pieces_of(samples: Samples, size: int) -> Iterator[Piece]:
    """The samples before they are gathered into batches, so that none is left out unseen."""
    if isinstance(samples, SampleStream):
        yield from samples.pieces(size)
        return
    for batch in samples.batches(size):
        divisible = all(a.ndim > 0 and len(a) == batch.count for a in batch.inputs.values())
        yield Piece(batch.inputs, batch.labels, batch.count, divisible)


def _join(pieces: list[Piece]) -> Batch:
    if len(pieces) == 1:
        return Batch(pieces[0].inputs, pieces[0].labels, pieces[0].count)
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    return Batch(
        {name: np.concatenate([p.inputs[name] for p in pieces]) for name in pieces[0].inputs},
        np.concatenate(labels) if labels else None,
        sum(piece.count for piece in pieces),
    )


def exact_batch(sliced: tuple[Tensor, ...], where: str) -> int | None:
    """The fixed size of the batch axis that the inputs share, or None where it is dynamic.

    Args:
        sliced: the inputs whose axis 0 is the batch.
        where: whose samples they are, as the start of a sentence.

    Raises:
        DataError: `samples-batch-axis` where the inputs have no batch axis in common.
    """
    dims = {tensor.shape[0] if tensor.rank else "none" for tensor in sliced}
    fixed = [dim for dim in dims if isinstance(dim, int)]
    if len(fixed) > 1 or len(dims) - len(fixed) > 1:
        raise DataError(
            "samples-batch-axis",
            f"{where}: the inputs do not share a batch axis to put samples along",
            why="axis 0 is "
            + ", ".join(f"{t.shape[0] if t.rank else 'missing'} in {t.name}" for t in sliced),
            hint="give an input without a batch axis at 0 as whole feeds: an array with one "
            "axis more, array[i] fed as it is",
        )
    return fixed[0] if fixed else None
