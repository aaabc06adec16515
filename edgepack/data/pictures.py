"""Samples from pictures: decoded, turned upright, resized, cropped, normalised."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data.fit import check_dtype, check_feed
from edgepack.data.preprocessing import Preprocessing
from edgepack.data.stream import Piece, SampleStream, exact_batch
from edgepack.errors import DataError, missing_package
from edgepack.runtime.plain import open_plain
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
LABEL_FILE = "labels.csv"
# Largest picture accepted, since a file of a few kB can claim gigabytes of pixels.
MAX_PIXELS = 64_000_000

# Pillow's modes of 16 and 32 bits per channel, "I;16" among them.
_DEEP_MODES = ("I", "F")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}
_LAYOUTS = ("nchw", "nhwc")


def open_pictures(
    folder: Path,
    paths: tuple[Path, ...],
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    *,
    origin: str,
) -> SampleStream:
    """Open the pictures of a folder, with the labels of its optional `labels.csv`.

    Args:
        folder: base of the relative paths in `labels.csv`.
        paths: the pictures, in order.
        inputs: the model's inputs: one, of rank 4.
        preprocessing: conversion of a picture to that input.
        origin: description of the source for the report.

    Raises:
        DataError: the model does not take one picture, the preprocessing is missing or
            invalid, or the labels do not match the pictures.
    """
    if preprocessing is None:
        raise DataError(
            "pictures-preprocessing-missing",
            f"there is no preprocessing for the pictures in {folder}",
            why="size, colour order, scale, mean and std must match the training",
            hint="declare them in the manifest, in the table [pictures]",
        )
    if len(inputs) != 1 or inputs[0].rank != 4:
        raise DataError(
            "pictures-inputs",
            "a folder of pictures feeds a model with one input of four axes",
            why=f"the model's inputs: {', '.join(map(str, inputs))}",
            hint="write the samples as arrays: an .npz with one array per input",
        )
    tensor = inputs[0]
    _check(preprocessing, tensor)
    labels = _read_labels(folder, paths)

    def pieces(size: int) -> Iterator[Piece]:
        for index, path in enumerate(paths):
            array = to_array(path, preprocessing)
            if tensor.dtype == "uint8":
                array = array.astype(np.uint8)
            feed = {tensor.name: array[None]}
            where = path.relative_to(folder).as_posix()
            check_dtype(array.dtype, tensor, where)
            check_feed({tensor.name: feed[tensor.name].shape}, inputs, where, any_batch=True)
            label = None
            if labels is not None:
                label = labels[index : index + 1]
            yield Piece(feed, label, 1, divisible=True)

    return SampleStream(origin, pieces, exact_batch(inputs, origin))


def to_array(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Convert a picture to the model's input, without the batch axis.

    The picture is turned upright by its EXIF orientation and loses its transparency. `resize` as
    one number is the length of the shorter side; the longer one becomes
    `int(resize * longer / shorter)`. Pillow's filters average when they shrink. The crop's corner
    is half of the margin, rounded to the nearest even pixel at a tie. These are torchvision's
    rules.

    Returns:
        float32 of shape (channels, height, width) or (height, width, channels).

    Raises:
        DataError: the picture is damaged, too large, too small, or deeper than 8 bits.
    """
    # A picture of 640 x 480 with resize=256, crop=224 becomes 341 x 256, then 224 x 224 from the
    # corner (58, 16): round(117 / 2) is 58, the even neighbour of 58.5.
    picture = _decode(path, preprocessing)
    if preprocessing.resize is not None:
        size = _resized(picture.size, preprocessing.resize)
        if size != picture.size:
            picture = picture.resize(size, _filter(preprocessing.interpolation))
    if preprocessing.crop is not None:
        picture = _centre(picture, preprocessing.crop, path)
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if preprocessing.colour == "bgr":
        pixels = pixels[:, :, ::-1]
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    # All in float32: a float64 scale would promote the array and round differently from training.
    array = (pixels.astype(np.float32) * np.float32(preprocessing.scale) - mean) / std
    if preprocessing.layout == "nchw":
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array)


def _decode(path: Path, preprocessing: Preprocessing) -> Image:
    """Return a picture upright, in the colours of the preprocessing, of 8 bits per channel."""
    try:
        from PIL import Image as pillow
        from PIL import ImageOps
    except ImportError as error:
        raise missing_package("pillow", "pictures", "Reading pictures") from error
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a decompression bomb; the check below refuses it.
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            opened = pillow.open(path)
        with opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise pillow.DecompressionBombError(f"{width} x {height} pixels")
            if opened.mode.split(";")[0] in _DEEP_MODES:
                raise DataError(
                    "picture-depth",
                    f"{path.name} has more than 8 bits a channel",
                    why=f"its pixels are of Pillow's mode {opened.mode}",
                    hint="convert it to 8 bits, as in training, or write the samples as arrays",
                )
            upright = ImageOps.exif_transpose(opened)
            if preprocessing.colour == "grey":
                return upright.convert("L")
            return upright.convert("RGB")
    except pillow.DecompressionBombError as error:
        raise DataError(
            "picture-too-large",
            f"{path.name} would take too much memory to decode",
            why=f"{error}; at most {MAX_PIXELS:,} pixels are accepted",
            hint="shrink it before the build",
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            "picture-unreadable",
            f"{path} cannot be decoded",
            why=f"{type(error).__name__}: {error}",
            hint="replace the file or remove it from the folder",
        ) from error


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return width and height after the resize."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _centre(picture: Image, crop: int | tuple[int, int], path: Path) -> Image:
    height, width = (crop, crop) if isinstance(crop, int) else crop
    if picture.width < width or picture.height < height:
        raise DataError(
            "picture-too-small",
            f"{path.name} is smaller than the crop",
            why=f"{picture.height} x {picture.width} pixels; the crop is {height} x {width}",
            hint="use a resize that is at least as large as the crop",
        )
    top = round((picture.height - height) / 2)
    left = round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _filter(interpolation: str) -> Resampling:
    from PIL.Image import Resampling

    return Resampling[interpolation.upper()]


def _check(preprocessing: Preprocessing, tensor: Tensor) -> None:
    """Refuse a preprocessing that contradicts itself or the input's type."""
    for key, value, choices in (
        ("interpolation", preprocessing.interpolation, _INTERPOLATIONS),
        ("colour", preprocessing.colour, tuple(_CHANNELS)),
        ("layout", preprocessing.layout, _LAYOUTS),
    ):
        if value not in choices:
            raise _invalid(f'{key} = "{value}" is not supported', f"one of {', '.join(choices)}")
    channels = _CHANNELS[preprocessing.colour]
    for key, numbers in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(numbers) not in (1, channels):
            raise _invalid(
                f"{key} has {len(numbers)} values", f"use one, or {channels}: one per channel"
            )
    if 0.0 in preprocessing.std:
        raise _invalid("std is 0", "pixels are divided by std, so it must not be 0")
    raw = preprocessing.scale == 1 and not any(preprocessing.mean)
    if tensor.dtype == "uint8" and not (raw and set(preprocessing.std) == {1.0}):
        raise _invalid(
            "the model takes uint8, and normalised pixels are not whole numbers",
            "for raw pixels: scale = 1.0, mean = [0.0], std = [1.0]",
        )


def _invalid(why: str, hint: str) -> DataError:
    return DataError(
        "pictures-preprocessing-invalid", "the preprocessing is not valid", why=why, hint=hint
    )


def _read_labels(folder: Path, paths: tuple[Path, ...]) -> np.ndarray | None:
    """Read the label of each picture from `labels.csv`, int64; None if there is no such file."""
    path = folder / LABEL_FILE
    if not path.exists():
        return None
    labels: dict[str, int] = {}
    try:
        with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            if not {"file", "label"} <= set(table.fieldnames or ()):
                raise ValueError(f"its columns are {table.fieldnames}")
            for row in table:
                labels[row["file"]] = int(row["label"])
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            "pictures-labels",
            f"{path} is not a list of labels",
            why=f"{type(error).__name__}: {error}",
            hint="the first line is `file,label`; each other line has a file relative to the "
            "folder and the index of its class",
        ) from error
    names = [picture.relative_to(folder).as_posix() for picture in paths]
    absent = sorted(labels.keys() - set(names))
    unlabelled = [name for name in names if name not in labels]
    if absent or unlabelled:
        raise DataError(
            "pictures-labels",
            f"{path} and the pictures do not match",
            why=f"{_count_names(unlabelled, 'picture(s) without a label')}; "
            f"{_count_names(absent, 'label(s) without a picture')}",
            hint="write one line for each picture in the folder",
        )
    return np.array([labels[name] for name in names], np.int64)


def _count_names(names: list[str], subject: str) -> str:
    """Return "2 picture(s) without a label, such as a.png", or the count alone for 0."""
    example = f", such as {names[0]}" if names else ""
    return f"{len(names)} {subject}{example}"
