"""Sample streams: pieces as a source stores them, gathered into batches that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgepack.data.samples import Batch, Samples
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor


class Digest(Protocol):
    """Hash object of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes to the hash."""


def add_array(digest: Digest, name: str, values: np.ndarray) -> None:
    """Add an array to a digest of `hashlib`: its name, type, shape and values."""
    values = np.ascontiguousarray(values)
    digest.update(f"{name}:{values.dtype.str}:{values.shape};".encode())
    digest.update(values.reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Piece:
    """Consecutive samples of a source, in one array per input.

    Attributes:
        inputs: one array per input, in the input's rank and dtype.
        labels: one label per sample along axis 0; None for unlabelled samples.
        count: number of samples.
        divisible: axis 0 of every array is the batch, so that pieces can be cut and joined;
            otherwise the piece is a complete feed and counts as one sample.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    count: int
    divisible: bool

    def split(self, count: int) -> tuple[Piece, Piece | None]:
        """Return the first `count` samples and the remaining ones; None if none remain."""
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
        """Return True if the two pieces can be joined."""
        return (self.labels is None) == (other.labels is None) and all(
            array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items()
        )


@dataclass(frozen=True)
class SampleStream:
    """Implementation of `Samples` that every source returns.

    Attributes:
        origin: description of the source for the report.
        pieces: iterates over all samples from the first, with at most the number passed in a
            divisible piece; each piece is checked against the inputs.
        exact: number of samples in every batch; None for a dynamic batch axis.
        notes: conversions that made the samples fit, in sentences.
    """

    origin: str
    pieces: Callable[[int], Iterator[Piece]]
    exact: int | None
    notes: tuple[str, ...] = ()

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over all samples from the first, at most `size` per batch.

        If the model's batch axis is fixed, every batch has exactly that many samples, and a
        remainder that does not fill one is dropped (`lint` warns of it). Samples of different
        sizes along a dynamic axis do not share a batch.

        Raises:
            DataError: a sample does not fit the model's inputs.
        """
        # With size 4 and pieces of 3, 3 and 3 samples:
        #   pending [3]; then 3 + 1 is a batch, pending [2]; then 2 + 2 is a batch, pending [1];
        #   the last sample is a batch of 1, or is dropped if the model takes exactly 4.
        size = self.exact or size
        if size < 1:
            raise ValueError(f"a batch holds at least one sample, not {size}")
        pending: list[Piece] = []
        for piece in self.pieces(size):
            if pending and not (piece.divisible and piece.alike(pending[0])):
                yield from self._close(pending, piece)
                pending = []
            rest: Piece | None = piece
            while rest is not None:
                room = size - sum(part.count for part in pending)
                # A complete feed is a batch of its own; `pending` is empty at this point.
                head, rest = rest.split(room) if piece.divisible else (rest, None)
                pending.append(head)
                if not piece.divisible or head.count == room:
                    yield _join(pending)
                    pending = []
        if pending and self.exact is None:
            yield _join(pending)

    def _close(self, pending: list[Piece], following: Piece) -> Iterator[Batch]:
        """Yield a batch that ends early because the following piece cannot join it."""
        if self.exact is not None:
            before, after = _row_shapes(pending[0]), _row_shapes(following)
            raise DataError(
                "samples-sizes-differ",
                f"samples of different sizes cannot share the model's batch of {self.exact}",
                why=f"{before} is followed by {after}",
                hint="pad the samples to one size, or export the model with a dynamic batch",
            )
        yield _join(pending)


def _row_shapes(piece: Piece) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in piece.inputs.items()}


def pieces_of(samples: Samples, size: int) -> Iterator[Piece]:
    """Iterate over samples before they are gathered, including those that no batch will hold."""
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
    """Return the fixed size of the batch axis that the inputs share; None if it is dynamic.

    Args:
        sliced: the inputs with the batch as axis 0.
        where: source of the samples, as the start of a sentence.

    Raises:
        DataError: `samples-batch-axis` if the inputs have no common batch axis.
    """
    # (batch, 3) and (batch, 64) give None; (8, 3) and (8, 64) give 8. (8, 3) and (batch, 64) give
    # 8 too, since a dynamic axis takes any size. (batch, 3) and (length, 64) share no axis.
    dims = {tensor.shape[0] if tensor.rank else "none" for tensor in sliced}
    fixed = [dim for dim in dims if isinstance(dim, int)]
    if len(fixed) > 1 or len(dims) - len(fixed) > 1:
        axes = [f"{t.shape[0] if t.rank else 'missing'} in {t.name}" for t in sliced]
        raise DataError(
            "samples-batch-axis",
            f"{where}: the inputs do not share a batch axis to stack samples along",
            why=f"axis 0 is {', '.join(axes)}",
            hint="store an input without a batch axis at 0 as complete feeds: an array with one "
            "axis more, array[i] fed unchanged",
        )
    return next(iter(fixed), None)
