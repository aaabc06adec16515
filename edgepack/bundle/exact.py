"""Exact and small forms of reference samples."""

from __future__ import annotations

import numpy as np

# First bytes of a file, and the suffix of its name.
_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"BM": "bmp",
    b"II*\x00": "tif",
    b"MM\x00*": "tif",
    b"fLaC": "flac",
}
# Whole numbers in these types are stored in the smallest one that holds them.
_WIDE = ("float32", "float64", "int16", "int32", "int64", "uint16", "uint32", "uint64")
_NARROW = ("uint8", "int8", "uint16", "int16", "int32")


def shrink(array: np.ndarray) -> np.ndarray:
    """Return the same numbers in the smallest type that holds them, if all are whole.

    Pixels of 0 to 255 in float32 become uint8, and tokens below 65,536 in int64 become uint16.
    """
    if array.dtype.name not in _WIDE or not array.size:
        return array
    for narrow in _NARROW:
        if np.dtype(narrow).itemsize >= array.dtype.itemsize:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            small = array.astype(narrow)
        # By their bits: -0.0 equals 0, and is another number to a model that divides by it.
        if small.astype(array.dtype).tobytes() == array.tobytes():
            return small
    return array


def find_suffix(data: bytes) -> str:
    """Return the suffix of raw data by its first bytes; "txt" for text, "bin" for anything else."""
    for magic, suffix in _MAGIC.items():
        if data.startswith(magic):
            return suffix
    if data[:4] == b"RIFF":
        return {b"WAVE": "wav", b"WEBP": "webp"}.get(data[8:12], "bin")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "bin"
    return "txt"
