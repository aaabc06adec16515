"""Decoded pictures are kept for the later readings of a set."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack.data import open_samples
from edgepack.data.raw.decoded import DecodedPictures
from edgepack.data.samples import Samples
from edgepack.runtime.preprocess import picture
from edgepack.runtime.tensor import Tensor

INPUTS = (Tensor("image", "float32", ("batch", 3, 8, 8)),)


def encode(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(number))
    return tmp_path


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the pictures that were decoded, in order."""
    names: list[str] = []
    decode = picture.decode

    def count(data: bytes, name: str, colour: str) -> Image.Image:
        names.append(Path(name).name)
        return decode(data, name, colour)

    monkeypatch.setattr(picture, "decode", count)
    return names


def open_folder(folder: Path) -> Samples:
    settings = picture.Picture(resize=8, crop=8, mean=(0.4, 0.5, 0.6), std=(0.2,))
    return open_samples(str(folder), INPUTS, preprocessing=settings)


def read(samples: Samples) -> np.ndarray:
    return np.concatenate([batch.inputs["image"] for batch in samples.batches(2)])


def test_a_second_reading_gives_the_same_bits_without_decoding(
    folder: Path, decodings: list[str]
) -> None:
    samples = open_folder(folder)
    first = read(samples)
    assert decodings == ["0.png", "1.png", "2.png"]
    assert np.array_equal(first, read(samples))
    assert len(decodings) == 3


def test_a_picture_that_changed_is_decoded_again(folder: Path, decodings: list[str]) -> None:
    samples = open_folder(folder)
    read(samples)
    (folder / "1.png").write_bytes(encode(7))
    changed = read(samples)
    assert decodings[3:] == ["1.png"]
    assert np.array_equal(changed, read(open_folder(folder)))


def test_pictures_beyond_the_limit_are_not_kept() -> None:
    decoded = DecodedPictures(limit=100)
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for number in range(2):
        decoded.put(number, b"content", pixels)
    kept = decoded.get(0, b"content")
    assert kept is not None
    assert np.array_equal(kept, pixels)
    assert decoded.get(1, b"content") is None
