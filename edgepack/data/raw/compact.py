"""Small raw samples for bundles: a photograph shrunk to what the preprocessing makes use of."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgepack.runtime.preprocess.picture import Picture, decode, sides

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgepack.runtime.preprocess.protocol import Preprocessing

# A shrunk picture stays larger than the network's input, so that the device's resize still counts.
MARGIN = 1.25
QUALITIES = (90, 80, 65, 50)


def compact_sample(preprocessing: Preprocessing, data: bytes, limit: int) -> bytes:
    """Return a raw sample of at most `limit` bytes where that is possible.

    Small samples are returned as they are. A larger picture is shrunk and encoded as a JPEG, which
    is a sample of its own: the original model's answers must be computed anew.

    Args:
        preprocessing: the conversion of the sample; only pictures are encoded again.
        data: the raw sample, which can be decoded.
        limit: in bytes.
    """
    if len(data) <= limit or not isinstance(preprocessing, Picture):
        return data
    smallest = data
    for candidate in _encode(decode(data, "", "rgb"), preprocessing):
        smallest = min(smallest, candidate, key=len)
        if len(smallest) <= limit:
            break
    return smallest


def _encode(picture: Image, preprocessing: Picture) -> Iterator[bytes]:
    """Yield JPEGs of a picture, each smaller than the one before."""
    size = _shrunk_size(picture.size, preprocessing)
    if size != picture.size:
        picture = picture.resize(size, resample=1)
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        yield buffer.getvalue()


def _shrunk_size(size: tuple[int, int], preprocessing: Picture) -> tuple[int, int]:
    """Return width and height after shrinking.

    1600 x 1200 with resize=256 becomes 427 x 320: the shorter side is 1.25 * 256. Without a resize
    the size decides what the network sees, and stays.
    """
    width, height = size
    if preprocessing.letterbox is not None:
        rows, columns = sides(preprocessing.letterbox)
        factor = MARGIN * min(rows / height, columns / width)
    elif preprocessing.resize is None:
        return size
    elif isinstance(preprocessing.resize, int):
        factor = MARGIN * preprocessing.resize / min(size)
    else:
        rows, columns = sides(preprocessing.resize)
        factor = MARGIN * max(rows / height, columns / width)
    if factor >= 1:
        return size
    return max(1, round(width * factor)), max(1, round(height * factor))
