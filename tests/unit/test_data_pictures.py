"""Pictures become arrays exactly as the preprocessing says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack.data import Picture, open_samples
from edgepack.runtime.tensor import Tensor


def to_array(path: Path, picture: Picture) -> np.ndarray:
    return picture.to_array(path.read_bytes(), path.name)


def gradient(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)


def test_normalisation_layout_and_colour(tmp_path: Path) -> None:
    pixels = gradient(4, 6)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    raw = Picture(scale=1.0)
    np.testing.assert_array_equal(to_array(tmp_path / "a.png", raw), pixels.transpose(2, 0, 1))
    bgr = Picture(scale=1.0, colour="bgr", layout="nhwc")
    np.testing.assert_array_equal(to_array(tmp_path / "a.png", bgr), pixels[:, :, ::-1])
    normal = Picture(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = (pixels / 255 - np.array(normal.mean)) / np.array(normal.std)
    got = to_array(tmp_path / "a.png", normal)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=1e-6)
    grey = to_array(tmp_path / "a.png", Picture(scale=1.0, colour="grey"))
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, as JPEG has it
    np.testing.assert_allclose(grey, luma[None], atol=1)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((80, 60), 30, (30, 40)),
        ((60, 81), 30, (40, 30)),
        ((80, 60), (10, 20), (10, 20)),
        ((80, 60), None, (60, 80)),
    ],
)
def test_resize_is_of_the_shorter_side_or_height_and_width(
    tmp_path: Path,
    size: tuple[int, int],
    resize: int | tuple[int, int] | None,
    expected: tuple[int, int],
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert to_array(tmp_path / "a.png", Picture(resize=resize)).shape == (3, *expected)


def test_the_crop_is_central(tmp_path: Path) -> None:
    pixels = gradient(10, 20)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = to_array(tmp_path / "a.png", Picture(crop=(4, 6), scale=1.0, layout="nhwc"))
    np.testing.assert_array_equal(got, pixels[3:7, 7:13])


def test_the_interpolation_is_the_one_asked_for(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient(90, 90))
    picture.save(tmp_path / "a.png")
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        expected = np.asarray(picture.resize((40, 40), Image.Resampling[name.upper()]))
        how = Picture(resize=40, interpolation=name, scale=1.0, layout="nhwc")
        np.testing.assert_array_equal(to_array(tmp_path / "a.png", how), expected)


def test_exif_turns_the_picture_upright(tmp_path: Path) -> None:
    pixels = gradient(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the file
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    got = to_array(tmp_path / "a.png", Picture(scale=1.0, layout="nhwc"))
    np.testing.assert_array_equal(got, np.rot90(pixels, -1))


def test_a_folder_is_read_sorted_with_its_labels(tmp_path: Path) -> None:
    for name, value in (("b/x.png", 3), ("a.png", 1), ("b/a.PNG", 2), (".hidden.png", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), value).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label\nb/x.png,30\na.png,10\nb/a.PNG,20\n")
    inputs = (Tensor("x", "float32", ("batch", 1, 2, 2)),)
    how = Picture(colour="grey", scale=1.0)
    batches = list(open_samples(str(tmp_path), inputs, preprocessing=how).batches(2))
    assert [batch.count for batch in batches] == [2, 1]
    values = np.concatenate([batch.inputs["x"][:, 0, 0, 0] for batch in batches])
    assert values.tolist() == [1, 2, 3]
    labels = [batch.labels.tolist() for batch in batches if batch.labels is not None]
    assert labels == [[10, 20], [30]]


def test_a_uint8_input_takes_raw_pixels(tmp_path: Path) -> None:
    pixels = gradient(4, 6)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    inputs = (Tensor("x", "uint8", ("batch", 4, 6, 3)),)
    how = Picture(scale=1.0, layout="nhwc")
    batch = next(iter(open_samples(str(tmp_path), inputs, preprocessing=how).batches(1)))
    assert batch.inputs["x"].dtype == np.uint8
    np.testing.assert_array_equal(batch.inputs["x"][0], pixels)
