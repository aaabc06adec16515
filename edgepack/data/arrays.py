"""Samples in `.npz` and `.npy` files: how their arrays become feeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.data.columns import Column, open_columns
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


def open_arrays(
    paths: tuple[Path, ...], inputs: tuple[Tensor, ...], *, origin: str
) -> SampleStream:
    """The samples of some files, in this order.

    The first file's headers are checked at once, those of the others when they are reached.

    Raises:
        DataError: the first file cannot be read or does not fit.
    """
    with open_columns(paths[0], inputs) as columns:
        plan = _Plan.of(columns, inputs, paths[0].name)

    def pieces(size: int) -> Iterator[Piece]:
        for path in paths:
            yield from _pieces(path, inputs, size)

    return SampleStream(origin, pieces, plan.exact, plan.notes)


def infer_tensors(path: Path) -> tuple[Tensor, ...]:
    """One tensor per array but the labels, axis 0 named "batch", the other axes fixed.

    Raises:
        DataError: the file cannot be read, or an array has no axis for samples.
    """
    with open_columns(path, ()) as columns:
        found = [column for column in columns if column.name != LABELS]
        for column in found:
            refuse_objects(column.dtype, column.name, path.name)
            if not column.shape:
                raise DataError(
                    "samples-shape",
                    f"{path.name}: {column.name} is a single number",
                    why="samples stand along axis 0, and it has no axis",
                    hint="give one entry per sample, or state the inputs: --input name:dtype:dims",
                )
        return tuple(
            Tensor(c.name, c.dtype.newbyteorder("=").name, ("batch", *c.shape[1:])) for c in found
        )


@dataclass(frozen=True)
class _Plan:
    """How a file's arrays become feeds."""

    count: int
    whole: frozenset[str]
    exact: int | None
    notes: tuple[str, ...]

    @staticmethod
    def of(columns: list[Column], inputs: tuple[Tensor, ...], where: str) -> _Plan:
        by_name = {column.name: column for column in columns}
        labels = None if LABELS in {t.name for t in inputs} else by_name.pop(LABELS, None)
        check_names(by_name, inputs, where)
        widened = [t for t in inputs if check_dtype(by_name[t.name].dtype, t, where)]
        whole = frozenset(t.name for t in inputs if len(by_name[t.name].shape) == t.rank + 1)
        sliced = tuple(t for t in inputs if t.name not in whole)
        for tensor in sliced:
            shape = by_name[tensor.name].shape
            if len(shape) != tensor.rank or not shape:
                raise shape_error(shape, tensor, where)
        exact = exact_batch(sliced, where) if sliced else None
        if whole and exact not in (None, 1):
            raise DataError(
                "samples-batch-axis",
                f"{where}: whole feeds stand beside samples of a batch of {exact}",
                why=f"{', '.join(sorted(whole))} hold(s) a whole feed in each array[i]; "
                f"{', '.join(t.name for t in sliced)} do(es) not",
                hint="give every input as whole feeds: one axis more, array[i] fed as it is",
            )
        shapes = {
            name: c.shape[1:] if name in whole else (1, *c.shape[1:]) for name, c in by_name.items()
        }
        check_feed(shapes, inputs, where, any_batch=not whole)
        count = _common_count(by_name, where)
        if labels is not None:
            check_label_header(labels.shape, labels.dtype, count, where)
        notes = tuple(
            f"{t.name} is widened from {by_name[t.name].dtype.name} to {t.dtype}." for t in widened
        )
        return _Plan(count, whole, exact, notes)


def _common_count(columns: dict[str, Column], where: str) -> int:
    counts = {name: column.shape[0] for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            "samples-counts-differ",
            f"{where}: the inputs do not have the same number of samples",
            why=", ".join(f"{count} of {name}" for name, count in counts.items()),
            hint="every array holds the same number of samples along axis 0",
        )
    count = next(iter(counts.values()))
    if count == 0:
        raise DataError(
            "samples-empty",
            f"{where} holds no sample",
            why="its arrays have length 0 along axis 0",
            hint="check the script that wrote it",
        )
    return count


def _pieces(path: Path, inputs: tuple[Tensor, ...], size: int) -> Iterator[Piece]:
    with open_columns(path, inputs) as columns:
        plan = _Plan.of(columns, inputs, path.name)
        dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in inputs}
        step = 1 if plan.whole else size
        for start in range(0, plan.count, step):
            rows = min(step, plan.count - start)
            arrays = {column.name: column.read(rows) for column in columns}
            feed = {}
            for name, dtype in dtypes.items():
                # An ellipsis, so that a whole feed of no axis stays an array.
                rows_or_feed = arrays[name][0, ...] if name in plan.whole else arrays[name]
                feed[name] = rows_or_feed.astype(dtype, copy=False)
            labels = arrays.get(LABELS) if LABELS not in dtypes else None
            yield Piece(feed, labels, rows, divisible=not plan.whole)
        for column in columns:
            column.finish()
