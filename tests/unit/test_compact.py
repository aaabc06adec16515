"""Reference samples in bundles are small, and exactly the numbers that they were."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgepack.bundle.exact import find_suffix, shrink
from edgepack.data.raw.compact import compact_sample
from edgepack.runtime.preprocess.picture import Picture
from support.picture_cases import encode, photographs


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        (Picture(resize=64, crop=56), (120, 80)),
        (Picture(resize=(50, 100)), (125, 83)),
        (Picture(letterbox=100), (125, 83)),
        (Picture(resize=1000), (640, 427)),
        (Picture(), (640, 427)),
    ],
)
def test_a_large_picture_is_shrunk_to_what_the_resize_needs(
    picture: Picture, size: tuple[int, int]
) -> None:
    data = encode(photographs()[0], "PNG")
    small = compact_sample(picture, data, 16_000)
    with Image.open(io.BytesIO(small)) as opened:
        assert opened.size == size
        assert opened.format == "JPEG"
    assert len(small) < len(data) / 4
    # The arrays have the size of the original's.
    assert picture.to_array(small).shape == picture.to_array(data).shape


def test_a_small_picture_is_kept_as_it_is() -> None:
    data = encode(photographs()[0].resize((60, 40)), "PNG")
    assert compact_sample(Picture(resize=32), data, len(data)) is data


@pytest.mark.parametrize(
    ("values", "before", "after"),
    [
        ([0, 255, 3], "float32", "uint8"),
        ([-1, 255], "float32", "int16"),
        ([0, 65_535], "int64", "uint16"),
        ([0, 70_000], "int64", "int32"),
        ([0.5, 1], "float32", "float32"),
        ([-0.0, 1], "float32", "float32"),
        ([np.nan, 1], "float32", "float32"),
        ([2.0**40, 1], "float64", "float64"),
        ([True, False], "bool", "bool"),
    ],
)
def test_whole_numbers_take_the_smallest_type(values: list[float], before: str, after: str) -> None:
    array = np.array(values, before)
    small = shrink(array)
    assert small.dtype == after
    assert small.astype(before).tobytes() == array.tobytes()


def test_the_suffix_follows_the_contents() -> None:
    photograph = photographs()[0].resize((8, 8))
    suffixes = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
    for kind, suffix in suffixes.items():
        assert find_suffix(encode(photograph, kind)) == suffix
    assert find_suffix("grün".encode()) == "txt"
    assert find_suffix(b"\x00\xff") == "bin"
