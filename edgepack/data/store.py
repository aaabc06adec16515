"""Random access to samples on disk, for training over shuffled epochs.

A stream is written once, array by array, and read through memory maps: memory holds a batch and
about 30 bytes per sample. A folder that an interrupted build completed is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgepack import files
from edgepack.data.samples import Samples
from edgepack.data.stream import SampleStream, pieces_of
from edgepack.errors import DataError

INDEX = "index.npz"
_ROWS = 64
# Name of the array of labels; an input's name cannot begin with a colon.
LABELS = ":labels"


@dataclass(frozen=True)
class Group:
    """Samples whose arrays have the same shapes, so that they can share a batch.

    Attributes:
        shapes: shape of one sample, or of a complete feed, by array name.
        whole: each member is a complete feed, which cannot be joined with others.
        members: positions in the store, ascending.
    """

    shapes: Mapping[str, tuple[int, ...]]
    whole: bool
    members: np.ndarray


class Store:
    """Arrays by name for every sample of a set.

    Attributes:
        count: number of samples.
        groups: sets of samples that can share a batch.
    """

    def __init__(self, folder: Path) -> None:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            header = json.loads(str(index["header"]))
            self._offsets: np.ndarray = index["offsets"]
            group_of = index["groups"]
        self._dtypes = {name: np.dtype(text) for name, text in header["dtypes"].items()}
        self._maps = {name: _open_map(folder / f"{i}.bin") for i, name in enumerate(self._dtypes)}
        self.count = len(group_of)
        groups = []
        for i, group in enumerate(header["groups"]):
            shapes = {name: tuple(shape) for name, shape in group["shapes"].items()}
            groups.append(Group(shapes, group["whole"], np.flatnonzero(group_of == i)))
        self.groups = tuple(groups)
        self._group_of = group_of

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._dtypes)

    def is_whole(self, members: Sequence[int] | np.ndarray) -> bool:
        """Return True if the samples, all of one group, are complete feeds."""
        return bool(self.groups[self._group_of[members[0]]].whole)

    def rows(self, name: str, members: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return one array of samples of one group, stacked along axis 0.

        A complete feed is returned in its own shape.
        """
        # Rows ("x", [4, 9]) of a group with x of (3, 32, 32) are read from two ranges of the file
        # of x and returned as (2, 3, 32, 32).
        group = self.groups[self._group_of[members[0]]]
        column = list(self._dtypes).index(name)
        shape, dtype = group.shapes[name], self._dtypes[name]
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        stored = self._maps[name]
        parts = []
        for start in self._offsets[column, np.asarray(members)]:
            parts.append(np.asarray(stored[start : start + length]))
        joined: np.ndarray = np.concatenate(parts).view(dtype)
        if group.whole:
            return joined.reshape(shape)
        return joined.reshape(len(parts), *shape)


def _open_map(path: Path) -> np.ndarray:
    # numpy cannot map an empty file, which an input of size 0 has.
    if not path.stat().st_size:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r")


class _Writer:
    """Writer of a store's files, one per array name."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.streams: dict[str, BinaryIO] = {}
        self.dtypes: dict[str, str] = {}
        self.ends: dict[str, int] = {}
        self.offsets: list[tuple[np.ndarray, np.ndarray]] = []
        self.groups: dict[str, int] = {}
        self.group_of: list[tuple[np.ndarray, int]] = []

    def add(self, members: np.ndarray, arrays: Mapping[str, np.ndarray], whole: bool) -> None:
        """Write the arrays of several samples along axis 0, or of one complete feed.

        Args:
            members: positions of the samples in the store.
            arrays: by name; the first call determines names and types.
            whole: the arrays are one complete feed.
        """
        if not self.streams:
            for i, (name, array) in enumerate(arrays.items()):
                path = self.folder / f"{i}.bin"
                self.streams[name] = self.stack.enter_context(path.open("wb"))
                self.dtypes[name], self.ends[name] = array.dtype.str, 0
        starts = np.empty((len(self.streams), len(members)), np.int64)
        for row, name in enumerate(self.streams):
            array = np.ascontiguousarray(arrays[name], self.dtypes[name])
            size = array.nbytes // len(members)
            starts[row] = self.ends[name] + size * np.arange(len(members))
            self.streams[name].write(array.data)
            self.ends[name] += array.nbytes
        self.offsets.append((members, starts))
        # The key of a group is its description in the index:
        #   {"shapes": {":labels": [], "x": [3, 32, 32]}, "whole": false}
        first = int(not whole)
        shapes = {name: list(array.shape[first:]) for name, array in arrays.items()}
        key = json.dumps({"shapes": shapes, "whole": whole}, sort_keys=True)
        self.group_of.append((members, self.groups.setdefault(key, len(self.groups))))

    def finish(self) -> None:
        """Sync the arrays, then publish the index: a store with an index is complete."""
        # Offsets of two arrays of three samples, x of 12 bytes each and :labels of 8:
        #   [[0, 12, 24], [0, 8, 16]], with groups [0, 0, 0]
        count = 0
        for members, _ in self.offsets:
            count += len(members)
        offsets = np.empty((len(self.streams), count), np.int64)
        groups = np.empty(count, np.int32)
        for members, starts in self.offsets:
            offsets[:, members] = starts
        for members, group in self.group_of:
            groups[members] = group
        for stream in self.streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        header = json.dumps({"dtypes": self.dtypes, "groups": list(map(json.loads, self.groups))})
        temporary = self.folder / f".{INDEX}"
        with temporary.open("wb") as stream:
            np.savez(stream, header=np.array(header), offsets=offsets, groups=groups)
        files.sync(temporary)
        temporary.replace(self.folder / INDEX)


Rows = tuple[np.ndarray, Mapping[str, np.ndarray], bool]


def store(folder: Path, rows: Callable[[], Iterator[Rows]]) -> Store:
    """Write a store, or open the existing one.

    Args:
        folder: folder of the store.
        rows: yields positions, the arrays of the samples there, and True for a complete feed;
            every position once.

    Raises HostError if the store cannot be written.
    """
    if not (folder / INDEX).exists():
        # Failures to read the samples are raised as DataError, so an OSError is the store's.
        try:
            with ExitStack() as stack:
                folder.mkdir(parents=True, exist_ok=True)
                writer = _Writer(folder, stack)
                for row in rows():
                    writer.add(*row)
                writer.finish()
        except OSError as error:
            raise files.unwritable(folder, error) from error
    return Store(folder)


def store_samples(folder: Path, samples: Samples) -> Store:
    """Write the samples of a stream to a store, with their labels under `LABELS`.

    Labels are stored as int64 or float64; a set may not mix the two.

    Raises DataError `samples-labels-type`, and any error of reading the samples.
    """

    def rows() -> Iterator[Rows]:
        start = 0
        kinds: set[str] = set()
        for piece in pieces_of(samples, _ROWS):
            arrays = dict(piece.inputs)
            if piece.labels is not None:
                if piece.labels.dtype.kind == "U":
                    raise DataError(
                        "samples-labels-type",
                        "the labels of the training samples are texts",
                        why="a training takes numbers",
                        hint="yield the training samples without labels",
                    )
                # int32 and int64 in two pieces are one kind; 1 and 1.0 are not: perhaps a mistake.
                kind = "int64"
                if piece.labels.dtype.kind == "f":
                    kind = "float64"
                kinds.add(kind)
                if len(kinds) > 1:
                    raise _mixed_labels(start)
                arrays[LABELS] = piece.labels.astype(kind)
            # A piece that cannot be cut into samples is one row.
            count = piece.count if piece.divisible else 1
            yield np.arange(start, start + count), arrays, not piece.divisible
            start += count

    return store(folder, rows)


def exact_of(samples: Samples) -> int | None:
    """Return the number of samples in every batch, or None if the model's batch is dynamic."""
    if not isinstance(samples, SampleStream):
        return None
    return samples.exact


def _mixed_labels(position: int) -> DataError:
    return DataError(
        "samples-labels-type",
        "some labels are whole numbers and some are not",
        why=f"the type changes at sample {position}, counted from 0",
        hint="-1 marks a sample without a class, NaN one without a value; do not mix them",
    )
