"""Samples that must be refused: one small case per error code, through the public door."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack.data import Picture, open_samples, random_samples
from edgepack.data.lint import lint
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor
from edgepack.spec.pictures import parse_pictures

IMAGE = (Tensor("image", "float32", ("batch", 3, 4, 5)),)
TOKENS = (
    Tensor("ids", "int64", ("batch", "tokens")),
    Tensor("mask", "int64", ("batch", "tokens")),
)
GOOD = np.zeros((4, 3, 4, 5), np.float32)


def refused(
    spec: Path | str,
    inputs: tuple[Tensor, ...] = IMAGE,
    preprocessing: Picture | None = None,
    base: Path = Path(),
) -> DataError:
    """The error that opening and linting the samples ends with."""
    with pytest.raises(DataError) as caught:
        lint(open_samples(str(spec), inputs, preprocessing=preprocessing, base=base), None, inputs)
    error = caught.value
    assert error.why, error.code
    assert error.hint, error.code
    return error


def npz(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
    return folder / "a.npz"


def test_nothing_there(tmp_path: Path) -> None:
    np.save(tmp_path / "calibration.npy", GOOD)
    error = refused(tmp_path / "calibraton.npy")
    assert error.code == "samples-not-found"
    assert "did you mean calibration.npy?" in error.why


ARRAYS: list[tuple[str, str, dict[str, object]]] = [
    ("samples-missing-input", "rename imgae to image", {"imgae": GOOD}),
    ("samples-extra-input", "did you mean labels?", {"image": GOOD, "label": np.arange(4)}),
    ("samples-dtype", 'array.astype("float32")', {"image": GOOD.astype(np.float64)}),
    ("samples-dtype", "normalise as in training", {"image": GOOD.astype(np.uint8)}),
    (
        "samples-shape",
        "the array image is (4, 3, 3, 5): 4 samples of (3, 3, 5); the model takes samples of "
        "(3, 4, 5)",
        {"image": GOOD[:, :, :3]},
    ),
    (
        "samples-shape",
        "the array image is (4, 1, 3, 3, 5): 4 feeds of (1, 3, 3, 5); the model takes feeds of "
        "(batch, 3, 4, 5)",
        {"image": GOOD[:, None, :, :3]},
    ),
    (
        "samples-shape",
        "the array image is (4, 5); the model takes samples of (3, 4, 5)",
        {"image": GOOD[0, 0]},
    ),
    (
        "samples-layout",
        "transpose(0, 1, 4, 2, 3)",
        {"image": GOOD.transpose(0, 2, 3, 1)[:, None].copy()},
    ),
    ("samples-layout", "transpose(0, 3, 1, 2)", {"image": GOOD.transpose(0, 2, 3, 1).copy()}),
    ("samples-layout", "transpose(0, 1, 3, 2)", {"image": GOOD.transpose(0, 1, 3, 2).copy()}),
    ("samples-empty", "length 0", {"image": GOOD[:0]}),
    ("samples-object-array", "unpickle", {"image": np.array([GOOD, None], object)}),
    ("samples-not-finite", "(0, 0, 0) is nan", {"image": GOOD + np.float32(np.nan)}),
    ("samples-labels-count", "3 label(s) for 4", {"image": GOOD, "labels": np.arange(3)}),
    ("samples-labels-type", "|S3", {"image": GOOD, "labels": np.array([b"cat", b"dog"] * 2)}),
    ("samples-fortran-order", "ascontiguousarray", {"image": np.asfortranarray(GOOD)}),
]


@pytest.mark.parametrize(("code", "text", "arrays"), ARRAYS)
def test_arrays_that_do_not_fit(
    tmp_path: Path, code: str, text: str, arrays: dict[str, object]
) -> None:
    error = refused(npz(tmp_path, **arrays))
    assert error.code == code
    assert text in error.why + error.hint


def test_infinity_is_named_with_its_sample(tmp_path: Path) -> None:
    images = np.zeros((40, 3, 4, 5), np.float32)
    images[33, 1, 2, 3] = np.inf
    error = refused(npz(tmp_path, image=images))
    assert error.code == "samples-not-finite"
    assert "calibration sample 33" in error.what
    assert "(1, 2, 3) is inf" in error.why


def test_counts_differ(tmp_path: Path) -> None:
    ids, mask = np.ones((4, 7), np.int64), np.ones((3, 7), np.int64)
    error = refused(npz(tmp_path, ids=ids, mask=mask), TOKENS)
    assert error.code == "samples-counts-differ"
    assert error.why == "4 of ids, 3 of mask"


def test_an_axis_of_two_sizes(tmp_path: Path) -> None:
    ids, mask = np.ones((4, 7), np.int64), np.ones((4, 8), np.int64)
    error = refused(npz(tmp_path, ids=ids, mask=mask), TOKENS)
    assert error.code == "samples-axis-sizes"
    assert error.why == "7 in ids, 8 in mask"


def test_no_batch_axis_in_common(tmp_path: Path) -> None:
    inputs = (Tensor("a", "float32", ("batch", 3)), Tensor("b", "float32", ("length", 3)))
    values = np.ones((4, 3), np.float32)
    assert refused(npz(tmp_path, a=values, b=values), inputs).code == "samples-batch-axis"


def test_whole_feeds_beside_a_fixed_batch(tmp_path: Path) -> None:
    inputs = (Tensor("a", "float32", (4, 3)), Tensor("b", "float32", (2, 3)))
    path = npz(tmp_path, a=np.ones((4, 3), np.float32), b=np.ones((4, 2, 3), np.float32))
    assert refused(path, inputs).code == "samples-batch-axis"


def test_too_few_for_the_fixed_batch(tmp_path: Path) -> None:
    error = refused(npz(tmp_path, image=GOOD), (Tensor("image", "float32", (8, 3, 4, 5)),))
    assert error.code == "samples-empty"
    assert "8 at a time" in error.why


def test_different_sizes_in_a_fixed_batch(tmp_path: Path) -> None:
    inputs = (Tensor("ids", "int64", (2, "tokens")),)
    for index in range(2):
        np.savez(tmp_path / f"{index}.npz", ids=np.ones((1, 3 + index), np.int64))
    with pytest.raises(DataError) as caught:
        list(open_samples(str(tmp_path), inputs).batches(1))
    assert caught.value.code == "samples-sizes-differ"


def test_a_npy_for_several_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 7), np.int64))
    assert refused(tmp_path / "a.npy", TOKENS).code == "samples-npy-inputs"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    error = refused("pipe", base=tmp_path)
    assert error.code == "samples-unreadable"
    assert error.why == "it is not a regular file"
    assert error.hint.startswith("check the path")


def test_a_file_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"x,y\n1,2\n")
    assert refused(tmp_path / "a.npz").code == "samples-format"


def npy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, GOOD)
    return file.getvalue()


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, image=GOOD)
    return file.getvalue()


def cut_npy(path: Path) -> None:
    path.write_bytes(npy_bytes()[:-9])


def forged_shape(path: Path) -> None:
    path.write_bytes(npy_bytes().replace(b"(4, 3, 4, 5)", b"(-4,3,-4,5)"))


def cut_npz(path: Path) -> None:
    path.write_bytes(npz_bytes()[:200])


def flipped_bit(path: Path) -> None:
    content = bytearray(npz_bytes())
    content[300] ^= 1
    path.write_bytes(content)


def damaged_deflate(path: Path) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, image=np.random.default_rng(0).random(GOOD.shape, np.float32))
    content = bytearray(file.getvalue())
    content[300:340] = bytes(40)
    path.write_bytes(content)


def a_zip_of_texts(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize(
    "damage", [cut_npy, forged_shape, cut_npz, flipped_bit, damaged_deflate, a_zip_of_texts]
)
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / "samples")
    assert refused(tmp_path / "samples").code == "samples-unreadable"


def test_folders(tmp_path: Path) -> None:
    assert refused(tmp_path).code == "samples-folder-empty"
    np.save(tmp_path / "a.npy", GOOD)
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    assert refused(tmp_path).code == "samples-folder-mixed"


def test_a_bad_shard_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", GOOD)
    np.save(tmp_path / "1.npy", GOOD.astype(np.float64))
    error = refused(tmp_path)
    assert error.code == "samples-dtype"
    assert "1.npy" in error.what


def test_random_samples_of_unknown_size() -> None:
    with pytest.raises(DataError) as caught:
        random_samples(TOKENS, 3)
    assert caught.value.code == "samples-size-unknown"


FUNCTIONS = [
    ("samples-function-import", "mine.py, line 1", "import nothing_of_this_name"),
    ("samples-function-missing", "did you mean sample?", "def sample(): ..."),
    ("samples-function-result", "it is dict", "def samples(): return {}"),
    ("samples-function-result", "it is int", "def samples(): return [1]"),
    ("samples-function-failed", "mine.py, line 1", "def samples(): yield 1 / 0"),
    ("samples-empty", "mine.py:samples has 0", "def samples(): return []"),
    ("samples-missing-input", "found: x", "def samples(): yield {'x': 1.0}"),
    (
        "samples-dtype",
        "float64",
        "import numpy\ndef samples(): yield {'image': numpy.zeros((3, 4, 5))}",
    ),
    (
        "samples-shape",
        "give single samples of (3, 4, 5), or complete feeds of (batch, 3, 4, 5)",
        "import numpy\ndef samples(): yield {'image': numpy.float32([1])}",
    ),
    (
        "samples-labels-count",
        "2 label(s) for 1",
        "import numpy\n"
        "def samples(): yield {'image': numpy.zeros((1, 3, 4, 5), 'f'), 'labels': [1, 2]}",
    ),
    (
        "samples-labels-count",
        "changes at calibration sample 1",
        "import numpy\n"
        "def samples():\n"
        "    yield {'image': numpy.zeros((3, 4, 5), 'f'), 'label': 1}\n"
        "    yield {'image': numpy.zeros((3, 4, 5), 'f')}\n",
    ),
]


@pytest.mark.parametrize(("code", "text", "body"), FUNCTIONS)
def test_functions_that_do_not_give_samples(
    tmp_path: Path, code: str, text: str, body: str
) -> None:
    (tmp_path / "mine.py").write_text(body + "\n")
    error = refused("mine.py:samples", base=tmp_path)
    assert error.code == code
    assert text in error.why + error.hint


def test_a_file_with_the_function_that_is_not_there(tmp_path: Path) -> None:
    assert refused("none.py:samples", base=tmp_path).code == "samples-function-import"


PICTURE = Picture(scale=1.0)


def a_bomb(path: Path) -> None:
    """A PNG of a hundred bytes that claims 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


def a_large_one(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


def a_cut_one(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def a_text(path: Path) -> None:
    path.write_text("no picture")


def a_deep_one(path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(path)


def a_small_one(path: Path) -> None:
    Image.new("RGB", (5, 4)).save(path)


@pytest.mark.parametrize(
    ("code", "make", "how"),
    [
        ("picture-too-large", a_bomb, PICTURE),
        ("picture-too-large", a_large_one, PICTURE),
        ("picture-unreadable", a_cut_one, PICTURE),
        ("picture-unreadable", a_text, PICTURE),
        ("picture-depth", a_deep_one, PICTURE),
        ("picture-too-small", a_small_one, Picture(crop=6)),
        ("samples-layout", a_small_one, Picture(layout="nhwc")),
        ("samples-shape", a_small_one, Picture(colour="grey")),
        ("pictures-preprocessing-missing", a_small_one, None),
        ("pictures-preprocessing-invalid", a_small_one, Picture(colour="rbg")),
        ("pictures-preprocessing-invalid", a_small_one, Picture(mean=(0.0, 0.0))),
        ("pictures-preprocessing-invalid", a_small_one, Picture(std=(0.0,))),
    ],
)
def test_pictures(
    tmp_path: Path, code: str, make: Callable[[Path], None], how: Picture | None
) -> None:
    make(tmp_path / "odd.png")
    error = refused(tmp_path, preprocessing=how)
    assert error.code == code
    if not code.startswith("pictures"):
        assert "odd.png" in error.what


@pytest.mark.parametrize(
    "shape",
    [("batch", 1, 28, 28), ("batch", 24, 32, 3), ("batch", 3, 16, 24), ("batch", 16, 16, 1)],
    ids=str,
)
@pytest.mark.parametrize("wrong", ["", "crop=8,", "letterbox=8,", "size=8,"])
def test_the_settings_that_a_hint_states_fit_the_model(
    tmp_path: Path, shape: tuple[str | int, ...], wrong: str
) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    inputs = (Tensor("image", "float32", shape),)
    how, stated = None, {}
    if wrong:
        stated = dict([wrong.rstrip(",").split("=")])
        stated["normalize"] = "0.5"
        how = Picture(**parse_pictures(",".join(map("=".join, stated.items()))))
    hint = refused(tmp_path, inputs, how).hint
    words = next(word for word in hint.split() if "=" in word)
    # A comma within brackets separates height and width.
    stated.update(part.split("=") for part in re.split(r",(?![^\[]*\])", words))
    text = ",".join(map("=".join, stated.items()))
    how = Picture(**parse_pictures(text))
    lint(open_samples(str(tmp_path), inputs, preprocessing=how), None, inputs)


def test_pictures_for_a_model_that_takes_none(tmp_path: Path) -> None:
    a_small_one(tmp_path / "a.png")
    assert refused(tmp_path, TOKENS, PICTURE).code == "pictures-inputs"


def test_normalised_pixels_for_whole_numbers(tmp_path: Path) -> None:
    a_small_one(tmp_path / "a.png")
    inputs = (Tensor("image", "uint8", ("batch", 3, 4, 5)),)
    error = refused(tmp_path, inputs, Picture())
    assert error.code == "pictures-preprocessing-invalid"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file,label\na.png,\n", "line 2 has no label"),
        ("file,label\na.png,1\na.png,2\n", "a.png has a second label"),
        ("name,class\na.png,1\n", "['name', 'class']"),
        ("file,label\n", "1 picture(s) without a label"),
        ("file,label\na.png,1\nb.png,2\n", "1 label(s) without a picture, such as b.png"),
    ],
)
def test_labels_that_do_not_match(tmp_path: Path, text: str, found: str) -> None:
    a_small_one(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text)
    error = refused(tmp_path, preprocessing=PICTURE)
    assert error.code == "pictures-labels"
    assert found in error.why
