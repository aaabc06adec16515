"""Decoded pictures on disk, for the later readings of a set.

A build reads its evaluation set five times: to check it, to ask the original, after each pass and
for the proof. Decoding a JPEG takes longer than running a small network on it.
"""

from __future__ import annotations

import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

# Bytes of all pictures of one set that are kept: 1,700 of 224 x 224. The others are decoded again.
LIMIT = 256 << 20


@dataclass(frozen=True)
class _Entry:
    """Position of one picture's pixels in the file.

    Attributes:
        content: hash of the picture's file, which may change during a build.
        offset: of its first byte.
        shape: (height, width, channels).
    """

    content: int
    offset: int
    shape: tuple[int, ...]


class DecodedPictures:
    """Pixels of pictures by their number, in a file without a name that vanishes with this object.

    Args:
        limit: bytes that are kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._end = limit, 0
        self._entries: dict[int, _Entry] = {}
        self._file: BinaryIO | None = None

    def get(self, number: int, data: bytes) -> np.ndarray | None:
        """Return the pixels, uint8, of a picture with these contents; None if it is not kept."""
        entry = self._entries.get(number)
        if self._file is None or entry is None or entry.content != hash(data):
            return None
        pixels = np.empty(entry.shape, np.uint8)
        self._file.seek(entry.offset)
        if self._file.readinto(pixels.data) != pixels.nbytes:  # type: ignore[attr-defined]
            return None
        return pixels

    def put(self, number: int, data: bytes, pixels: np.ndarray) -> None:
        """Keep the pixels of a picture with these contents, if there is room."""
        if number in self._entries or self._end + pixels.nbytes > self._limit:
            return
        # A full disk costs time, and no result: the picture is decoded again.
        with suppress(OSError):
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with self
                weakref.finalize(self, self._file.close)
            self._file.seek(self._end)
            if self._file.write(np.ascontiguousarray(pixels).data) == pixels.nbytes:
                self._entries[number] = _Entry(hash(data), self._end, pixels.shape)
                self._end += pixels.nbytes
