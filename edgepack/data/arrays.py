"""Samples in `.npz` and `.npy` files, converted from arrays to feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from edgepack.data.columns import open_columns
from edgepack.data.fit import (
    LABELS,
    check_dtype,
    check_feed,
    check_label_header,
    check_names,
    refuse_objects,
    shape_error,
)
from edgepack.data.stream import Piece, SampleStream, exact_batch
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor
from edgepack.spec.tensors import names_of


class AnyColumn(Protocol):
    """Array of a file or of memory, read row by row from the front."""

    @property
    def name(self) -> str:
        """Return the array's name."""

    @property
    def where(self) -> str:
        """Return its source, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the complete array, (rows, ...)."""

    @property
    def dtype(self) -> np.dtype:
        """Return the element type as stored."""

    def read(self, rows: int) -> np.ndarray:
        """Return the next rows."""

    def finish(self) -> None:
        """Check the array after its last row."""


@dataclass
class MemoryColumn:
    """Array in memory, at its next row."""

    name: str
    where: str
    array: np.ndarray
    position: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the complete array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return self.array.dtype

    def read(self, rows: int) -> np.ndarray:
        """Return the next rows, as a view."""
        start, self.position = self.position, self.position + rows
        return self.array[start : self.position]

    def finish(self) -> None:
        """Check nothing: memory has no checksum."""


OpenColumns = Callable[[], "AbstractContextManager[Sequence[AnyColumn]]"]


def open_arrays(
    paths: tuple[Path, ...], inputs: tuple[Tensor, ...], *, origin: str
) -> SampleStream:
    """Open the samples of several files, in this order.

    The first file's headers are checked immediately, those of the others on reaching them.

    Raises:
        DataError: the first file cannot be read or does not fit.
    """
    with open_columns(paths[0], inputs) as columns:
        plan = _Plan.of(columns, inputs, paths[0].name)

    def pieces(size: int) -> Iterator[Piece]:
        for path in paths:
            yield from _read_pieces(partial(open_columns, path, inputs), inputs, size, path.name)

    return SampleStream(origin, pieces, plan.exact, plan.notes)


def open_memory(
    arrays: Mapping[str, np.ndarray], inputs: tuple[Tensor, ...], *, origin: str
) -> SampleStream:
    """Open samples in memory: arrays by name, as an `.npz` file holds them.

    Raises DataError if they do not fit.
    """
    plan = _Plan.of(_list_columns(arrays, origin), inputs, origin)

    def pieces(size: int) -> Iterator[Piece]:
        columns = nullcontext(_list_columns(arrays, origin))
        yield from _read_pieces(lambda: columns, inputs, size, origin)

    return SampleStream(origin, pieces, plan.exact, plan.notes)


def _list_columns(arrays: Mapping[str, np.ndarray], origin: str) -> list[MemoryColumn]:
    return [MemoryColumn(name, origin, array) for name, array in arrays.items()]


def infer_tensors(path: Path) -> tuple[Tensor, ...]:
    """Return one tensor per array except the labels, axis 0 named "batch", other axes fixed.

    Raises:
        DataError: the file cannot be read, or an array has no axis for samples.
    """
    with open_columns(path, ()) as columns:
        return infer_columns(columns, path.name)


def infer_memory(arrays: Mapping[str, np.ndarray], origin: str) -> tuple[Tensor, ...]:
    """Return the tensors of arrays in memory, as `infer_tensors` does for a file."""
    return infer_columns(_list_columns(arrays, origin), origin)


def infer_columns(columns: Sequence[AnyColumn], where: str) -> tuple[Tensor, ...]:
    """Return one tensor per array except the labels. Raises DataError `samples-shape`."""
    tensors = []
    for column in columns:
        if column.name == LABELS:
            continue
        refuse_objects(column.dtype, column.name, where)
        if not column.shape:
            raise DataError(
                "samples-shape",
                f"{where}: {column.name} is a single number",
                why="samples are stored along axis 0, and a single number has no axis",
                hint="store one entry per sample, or declare the inputs: --input name:dtype:dims",
            )
        # An array of (64, 3, 224, 224) float32 becomes a tensor of (batch, 3, 224, 224). Byte
        # order is dropped: ">f4" is float32 to the model.
        dtype = column.dtype.newbyteorder("=").name
        tensors.append(Tensor(column.name, dtype, ("batch", *column.shape[1:])))
    return tuple(tensors)


@dataclass(frozen=True)
class _Plan:
    """Conversion of a file's arrays to feeds.

    Attributes:
        count: number of entries along axis 0 of every array.
        complete: names of the inputs that hold a complete feed in each `array[i]`.
        exact: number of samples in every batch, if the model's batch axis is fixed.
        notes: conversions that were necessary, in sentences.
    """

    count: int
    complete: frozenset[str]
    exact: int | None
    notes: tuple[str, ...]

    # For the inputs image:float32:batch,3,32,32 and mask:bool:32,32, a file with
    #   image (100, 1, 3, 32, 32)   one axis more than the input: complete feeds
    #   mask  (100, 32, 32)         one axis more than the input: complete feeds
    # has count 100 and complete {"image", "mask"}: feed i is image[i] with mask[i]. With image
    # as (100, 3, 32, 32) feed i is image[i:i+1] with mask[i], which a model with its batch fixed
    # to 8 cannot take.
    @staticmethod
    def of(columns: Sequence[AnyColumn], inputs: tuple[Tensor, ...], where: str) -> _Plan:
        """Check a file's headers against the inputs and plan the conversion."""
        by_name = {column.name: column for column in columns}
        labels = None
        if LABELS not in names_of(inputs):
            labels = by_name.pop(LABELS, None)
        check_names(by_name, inputs, where)
        notes = []
        for tensor in inputs:
            dtype = by_name[tensor.name].dtype
            if check_dtype(dtype, tensor, where):
                notes.append(f"{tensor.name} is widened from {dtype.name} to {tensor.dtype}.")
        complete, sliced = _divide(by_name, inputs, where)
        exact = exact_batch(sliced, where)
        if complete and exact not in (None, 1):
            raise DataError(
                "samples-batch-axis",
                f"{where}: complete feeds are mixed with samples for a batch of {exact}",
                why=f"{', '.join(sorted(complete))}: a complete feed in each array[i]; "
                f"{', '.join(names_of(sliced))}: one sample in each array[i]",
                hint="store every input as complete feeds: one axis more, array[i] fed unchanged",
            )
        shapes, stored = {}, {}
        for name, column in by_name.items():
            stored[name] = column.shape
            # An array of (597, 1, 8, 8) holds 597 samples (1, 8, 8), which are fed as (1, 1, 8, 8).
            row = column.shape[1:]
            shapes[name] = row if name in complete else (1, *row)
        check_feed(shapes, inputs, where, any_batch=not complete, stored=stored)
        count = _common_count(by_name, where)
        if labels is not None:
            check_label_header(labels.shape, labels.dtype, count, where)
        return _Plan(count, complete, exact, tuple(notes))


def _divide(
    columns: dict[str, AnyColumn], inputs: tuple[Tensor, ...], where: str
) -> tuple[frozenset[str], tuple[Tensor, ...]]:
    """Return the names of the inputs stored as complete feeds, and the inputs stored as samples.

    Raises DataError `samples-shape` or `samples-layout` for an array that is neither.
    """
    complete, sliced = [], []
    for tensor in inputs:
        if len(columns[tensor.name].shape) == tensor.rank + 1:
            complete.append(tensor.name)
        else:
            sliced.append(tensor)
    for tensor in sliced:
        shape = columns[tensor.name].shape
        if len(shape) != tensor.rank or not shape:
            raise shape_error(shape, tensor, where, stored=shape)
    return frozenset(complete), tuple(sliced)


def _common_count(columns: dict[str, AnyColumn], where: str) -> int:
    counts = {name: column.shape[0] for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            "samples-counts-differ",
            f"{where}: the inputs do not have the same number of samples",
            why=", ".join(f"{count} of {name}" for name, count in counts.items()),
            hint="store the same number of samples along axis 0 of every array",
        )
    count = next(iter(counts.values()))
    if count == 0:
        raise DataError(
            "samples-empty",
            f"{where} holds no samples",
            why="its arrays have length 0 along axis 0",
            hint="check the script that wrote it",
        )
    return count


def _read_pieces(
    open_: OpenColumns, inputs: tuple[Tensor, ...], size: int, where: str
) -> Iterator[Piece]:
    with open_() as columns:
        plan = _Plan.of(columns, inputs, where)
        # Complete feeds are not gathered into batches, so they are read one at a time.
        step = size
        if plan.complete:
            step = 1
        for start in range(0, plan.count, step):
            rows = min(step, plan.count - start)
            arrays = {column.name: column.read(rows) for column in columns}
            feed = {}
            for tensor in inputs:
                # Taken out, so that only labels remain; of an input named "labels", none do.
                array = arrays.pop(tensor.name)
                if tensor.name in plan.complete:
                    # The ellipsis keeps a complete feed without axes an array: x[0] of shape (1,)
                    # is a numpy scalar, x[0, ...] an array of shape ().
                    array = array[0, ...]
                feed[tensor.name] = array.astype(tensor.dtype, copy=False)
            labels = arrays.get(LABELS)
            yield Piece(feed, labels, rows, divisible=not plan.complete)
        for column in columns:
            column.finish()
