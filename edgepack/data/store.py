"""Samples on disk in any order: what a training reads, epoch after epoch, shuffled.

A stream is written once, array by array, and read through memory maps: memory holds a batch and
some 30 bytes for every sample. A folder that a killed build completed is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgepack import files
from edgepack.data.samples import Samples
from edgepack.data.stream import SampleStream, pieces_of
from edgepack.errors import DataError

INDEX = "index.npz"
_ROWS = 64
# No input is called so.
LABELS = ":labels"


@dataclass(frozen=True)
class Group:
    """Samples whose arrays have the same shapes, so that they can share a batch.

    Attributes:
        shapes: by name; of one sample, or of a whole feed.
        whole: whether each is a feed by itself, which cannot be joined with others.
        members: their positions in the store, ascending.
    """

    shapes: Mapping[str, tuple[int, ...]]
    whole: bool
    members: np.ndarray


class Store:
    """Arrays by name for every sample of a set.

    Attributes:
        count: number of samples.
        groups: what can share a batch.
    """

    def __init__(self, folder: Path) -> None:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            header = json.loads(str(index["header"]))
            self._offsets: np.ndarray = index["offsets"]
            group_of = index["groups"]
        self._dtypes = {name: np.dtype(text) for name, text in header["dtypes"].items()}
        self._maps = {
            name: np.memmap(folder / f"{i}.bin", np.uint8, mode="r")
            if (folder / f"{i}.bin").stat().st_size
            else np.empty(0, np.uint8)
            for i, name in enumerate(self._dtypes)
        }
        self.count = len(group_of)
        self.groups = tuple(
            Group(
                {name: tuple(shape) for name, shape in found["shapes"].items()},
                found["whole"],
                np.flatnonzero(group_of == i),
            )
            for i, found in enumerate(header["groups"])
        )
        self._group_of = group_of

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._dtypes)

    def is_whole(self, members: Sequence[int] | np.ndarray) -> bool:
        """Whether samples of one group are feeds by themselves."""
        return bool(self.groups[self._group_of[members[0]]].whole)

    def rows(self, name: str, members: Sequence[int] | np.ndarray) -> np.ndarray:
        """One array of samples of one group, stacked along axis 0; a whole feed as it is."""
        group = self.groups[self._group_of[members[0]]]
        column = list(self._dtypes).index(name)
        shape, dtype = group.shapes[name], self._dtypes[name]
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        taken = self._maps[name]
        parts = [
            np.asarray(taken[start : start + length])
            for start in self._offsets[column, np.asarray(members)]
        ]
        joined: np.ndarray = np.concatenate(parts).view(dtype)
        return joined.reshape(shape if group.whole else (len(parts), *shape))


class _Writer:
    """Arrays by name, written one after the other."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.streams: dict[str, BinaryIO] = {}
        self.dtypes: dict[str, str] = {}
        self.ends: dict[str, int] = {}
        self.offsets: list[tuple[np.ndarray, np.ndarray]] = []
        self.groups: dict[str, int] = {}
        self.group_of: list[tuple[np.ndarray, int]] = []

    def add(self, members: np.ndarray, arrays: Mapping[str, np.ndarray], whole: bool) -> None:
        """Write the arrays of some samples, along axis 0; or one whole feed."""
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
        shapes = {n: list(a.shape if whole else a.shape[1:]) for n, a in arrays.items()}
        key = json.dumps({"shapes": shapes, "whole": whole}, sort_keys=True)
        self.group_of.append((members, self.groups.setdefault(key, len(self.groups))))

    def finish(self) -> None:
        """Make everything durable, and the index visible: what is there is complete."""
        count = sum(len(members) for members, _ in self.offsets)
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
    """Write a store, or open the one that is there.

    Args:
        folder: where it is to be.
        rows: yields positions, the arrays of the samples there, and whether they are one whole
            feed; every position once.

    Raises HostError where it cannot be written.
    """
    if not (folder / INDEX).exists():
        # What goes wrong in reading the samples is told as a DataError already.
        try:
            with ExitStack() as stack:
                folder.mkdir(parents=True, exist_ok=True)
                writer = _Writer(folder, stack)
                for members, arrays, whole in rows():
                    writer.add(members, arrays, whole)
                writer.finish()
        except OSError as error:
            raise files.unwritable(folder, error) from error
    return Store(folder)


def store_samples(folder: Path, samples: Samples) -> Store:
    """The samples of a stream as a store; labels, where there are any, under `LABELS`.

    Labels are kept as int64 or float64, and must all be the one or the other.

    Raises DataError `samples-labels-type`, and what reading the samples raises.
    """

    def rows() -> Iterator[Rows]:
        start = 0
        kinds: set[str] = set()
        for piece in pieces_of(samples, _ROWS):
            arrays: dict[str, Any] = dict(piece.inputs)
            if piece.labels is not None:
                kind = "float64" if piece.labels.dtype.kind == "f" else "int64"
                kinds.add(kind)
                if len(kinds) > 1:
                    raise _mixed(start)
                arrays[LABELS] = piece.labels.astype(kind)
            count = piece.count if piece.divisible else 1
            yield np.arange(start, start + count), arrays, not piece.divisible
            start += count

    return store(folder, rows)


def exact_of(samples: Samples) -> int | None:
    """The number of samples that every batch must have, where the model's batch is fixed."""
    return samples.exact if isinstance(samples, SampleStream) else None


def _mixed(where: int) -> DataError:
    return DataError(
        "samples-labels-type",
        "some labels are whole numbers and some are not",
        why=f"it changes at sample {where}, counted from 0",
        hint="-1 marks a sample without a class, NaN one without a value; do not mix them",
    )
