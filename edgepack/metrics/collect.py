"""Collect the answers to a whole evaluation set, batch by batch, in bounded memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np


class Collector:
    """Arrays of all batches, joined along the samples; a context manager, since it owns files.

    The arrays are written to temporary files and mapped, so that a metric can be computed of
    answers that do not fit into memory.
    """

    def __init__(self) -> None:
        self._columns: list[_Column] = []
        self._counts: list[int] = []
        self._files = ExitStack()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()

    def add(self, arrays: Sequence[np.ndarray], count: int) -> None:
        """Add the arrays of one batch of `count` samples: the outputs of a model, or the labels.

        Raises OSError if the disk is full.
        """
        if not self._columns:
            for array in arrays:
                file = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
                self._columns.append(_Column(cast("BinaryIO", file), array.dtype))
        for column, array in zip(self._columns, arrays, strict=True):
            column.add(array, count)
        self._counts.append(count)

    @property
    def count(self) -> int:
        """Number of samples of all batches."""
        return sum(self._counts)

    def batches(self) -> Iterator[tuple[list[np.ndarray], int]]:
        """Iterate over the arrays of each batch, with its number of samples."""
        parts = [column.parts() for column in self._columns]
        for index, count in enumerate(self._counts):
            yield [part[index] for part in parts], count

    def arrays(self) -> list[np.ndarray]:
        """Return one read-only array for each array of a batch, with the samples along axis 0.

        Samples of different sizes give an array of arrays, of dtype object.
        """
        return [column.join() for column in self._columns]


class _Column:
    """One array of every batch, in a file."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self._file, self._dtype = file, dtype
        self._shapes: list[tuple[int, ...]] = []
        self._texts: list[np.ndarray] = []
        # True while axis 0 of every array is that of the samples.
        self._stacked = True

    def add(self, array: np.ndarray, count: int) -> None:
        """Append the array of one batch."""
        # The (5, 4) boxes of one picture have no axis of samples: 5 is not 1.
        self._stacked = self._stacked and array.ndim > 0 and len(array) == count
        # Texts have no fixed size: "<U5" cannot hold those of a batch with the type "<U9".
        if self._dtype.kind == "U":
            self._shapes.append(array.shape)
            self._texts.append(array)
            return
        array = np.asarray(array, dtype=self._dtype)
        self._shapes.append(array.shape)
        self._file.write(array.tobytes())

    def join(self) -> np.ndarray:
        """Return the joined array.

        Batches of shapes (16, 10) and (4, 10) give (20, 10). Batches of (16, 7) and (4, 9) give
        20 arrays, of shapes (7,) and (9,). An output that has no axis for the samples, such as
        the detected boxes (5, 4) and (2, 4) of one picture each, gives one array per batch.
        """
        parts = self.parts()
        if self._stacked:
            tails = {shape[1:] for shape in self._shapes}
            if len(tails) == 1:
                values = self._map()
                return values.reshape(-1, *tails.pop()) if values.size else np.concatenate(parts)
            parts = list(chain.from_iterable(parts))
        elif len(set(self._shapes)) == 1 and not self._texts:
            return self._map().reshape(len(parts), *self._shapes[0])
        ragged = np.empty(len(parts), dtype=object)
        for index, part in enumerate(parts):
            ragged[index] = part
        ragged.flags.writeable = False
        return ragged

    def parts(self) -> list[np.ndarray]:
        """Return the array of each batch, mapped from the file."""
        if self._texts:
            return list(self._texts)
        values = self._map()
        parts, start = [], 0
        for shape in self._shapes:
            # The file has no gaps: (16, 10), then (4, 10) from element 160.
            size = int(np.prod(shape, dtype=np.int64))
            parts.append(values[start : start + size].reshape(shape))
            start += size
        return parts

    def _map(self) -> np.ndarray:
        self._file.flush()
        size = os.fstat(self._file.fileno()).st_size
        # An empty file cannot be mapped.
        if not size:
            return np.empty(0, dtype=self._dtype)
        # A plain array: np.memmap's results of sums and means are subclasses, too.
        return np.asarray(np.memmap(self._file, dtype=self._dtype, mode="r"))
