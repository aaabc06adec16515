"""Sample streams: pieces as a source stores them, gathered into batches that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgepack.data.samples import Batch, Samples
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from edgepack.runtime.preprocess.protocol import Preprocessing


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
        raw: the raw sample of each, such as the contents of a JPEG, from which the stream's
            preprocessing makes the arrays; None for samples that are arrays.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    count: int
    divisible: bool
    raw: Sequence[bytes] | None = None

    def split(self, count: int) -> tuple[Piece, Piece | None]:
        """Return the first `count` samples and the remaining ones; None if none remain."""
        if count >= self.count:
            return self, None
        return self._cut(slice(None, count)), self._cut(slice(count, None))

    def take(self, rows: Sequence[int]) -> Piece:
        """Return some of the samples of a divisible piece, in this order."""
        index = np.asarray(rows, np.intp)
        inputs = {name: array[index] for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[index]
        raw = None if self.raw is None else tuple(self.raw[row] for row in rows)
        return Piece(inputs, labels, len(rows), self.divisible, raw)

    def _cut(self, part: slice) -> Piece:
        inputs = {name: array[part] for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[part]
        # range(5)[slice(3, None)] is range(3, 5): the last 2 of 5 samples.
        raw = None if self.raw is None else self.raw[part]
        return Piece(inputs, labels, len(range(self.count)[part]), self.divisible, raw)

    def alike(self, other: Piece) -> bool:
        """Return True if the two pieces can be joined."""
        if (self.labels is None) != (other.labels is None):
            return False
        return self.row_shapes() == other.row_shapes()

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array without axis 0."""
        return {name: array.shape[1:] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class SampleStream:
    """Implementation of `Samples` that every source returns.

    Attributes:
        origin: description of the source for the report.
        pieces: iterates over all samples from the first, with at most the number passed in a
            divisible piece; each piece is checked against the inputs.
        exact: number of samples in every batch; None for a dynamic batch axis.
        notes: conversions that made the samples fit, in sentences.
        preprocessing: conversion of the raw samples to arrays; None for samples that are arrays.
        class_names: names of the classes, by their index; empty if they are not known.
        constants: inputs that may be the same in every sample, such as the mask of unpadded texts.
        unlabelled: a sentence that says where labels may be, for samples without any; else empty.
        count: number of samples that fill batches, once they have been read; else None.
    """

    origin: str
    pieces: Callable[[int], Iterator[Piece]]
    exact: int | None
    notes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    constants: frozenset[str] = frozenset()
    unlabelled: str = ""
    count: int | None = None

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
        room = size
        for piece in self.pieces(size):
            if pending and not (piece.divisible and piece.alike(pending[0])):
                yield from self._close(pending, piece)
                pending, room = [], size
            if not piece.divisible:
                # A complete feed is a batch of its own; `pending` is empty at this point.
                yield _join([piece])
                continue
            rest: Piece | None = piece
            while rest is not None:
                head, rest = rest.split(room)
                pending.append(head)
                room -= head.count
                if not room:
                    yield _join(pending)
                    pending, room = [], size
        if pending and self.exact is None:
            yield _join(pending)

    def _close(self, pending: list[Piece], following: Piece) -> Iterator[Batch]:
        """Yield a batch that ends early because the following piece cannot join it."""
        if self.exact is not None:
            before, after = pending[0].row_shapes(), following.row_shapes()
            raise DataError(
                "samples-sizes-differ",
                f"samples of different sizes cannot share the model's batch of {self.exact}",
                why=f"{before} is followed by {after}",
                hint="pad the samples to one size, or export the model with a dynamic batch",
            )
        yield _join(pending)


def pieces_of(samples: Samples, size: int) -> Iterator[Piece]:
    """Iterate over samples before they are gathered, including those that no batch will hold."""
    if isinstance(samples, SampleStream):
        yield from samples.pieces(size)
        return
    for batch in samples.batches(size):
        divisible = all(a.ndim > 0 and len(a) == batch.count for a in batch.inputs.values())
        yield Piece(batch.inputs, batch.labels, batch.count, divisible, batch.raw)


def preprocessing_of(samples: Samples) -> Preprocessing | None:
    """Return the conversion of raw samples to arrays; None for samples that are arrays."""
    if isinstance(samples, SampleStream):
        return samples.preprocessing
    return None


def class_names_of(samples: Samples) -> tuple[str, ...]:
    """Return the names of the classes; empty if they are not known."""
    if isinstance(samples, SampleStream):
        return samples.class_names
    return ()


def _join(pieces: list[Piece]) -> Batch:
    if len(pieces) == 1:
        return Batch(pieces[0].inputs, pieces[0].labels, pieces[0].count, pieces[0].raw)
    labels, count = [], 0
    raw: list[bytes] = []
    for piece in pieces:
        count += piece.count
        raw += piece.raw or ()
        if piece.labels is not None:
            labels.append(piece.labels)
    inputs = {}
    for name in pieces[0].inputs:
        inputs[name] = np.concatenate([piece.inputs[name] for piece in pieces])
    return Batch(inputs, np.concatenate(labels) if labels else None, count, raw or None)


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
    fixed, named, axes = set(), set(), []
    for tensor in sliced:
        axis = tensor.shape[0] if tensor.rank else "missing"
        axes.append(f"{axis} in {tensor.name}")
        if isinstance(axis, int):
            fixed.add(axis)
        else:
            named.add(axis)
    if len(fixed) > 1 or len(named) > 1:
        raise DataError(
            "samples-batch-axis",
            f"{where}: the inputs do not share a batch axis to stack samples along",
            why=f"axis 0 is {', '.join(axes)}",
            hint="store an input without a batch axis at 0 as complete feeds: an array with one "
            "axis more, array[i] fed unchanged",
        )
    return next(iter(fixed), None)
