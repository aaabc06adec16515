"""Samples from pictures, converted by the code that devices run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgepack.data.fit import check_dtype, check_feed
from edgepack.data.raw import prepare, read_file
from edgepack.data.stream import Piece, SampleStream, exact_batch
from edgepack.errors import DataError
from edgepack.runtime.plain import open_plain
from edgepack.runtime.preprocess.kinds import Preprocessing
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.tensor import Tensor

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
LABEL_FILE = "labels.csv"


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
    if not isinstance(preprocessing, Picture):
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
    picture = replace(preprocessing, input=tensor.name, dtype=_pixel_type(tensor))
    _check(picture)
    labels = _read_labels(folder, paths)

    def pieces(size: int) -> Iterator[Piece]:
        for index, path in enumerate(paths):
            data = read_file(path)
            feed = prepare(picture, data, str(path))
            where = path.relative_to(folder).as_posix()
            array = feed[tensor.name]
            check_dtype(array.dtype, tensor, where)
            check_feed({tensor.name: array.shape}, inputs, where, any_batch=True)
            label = None
            if labels is not None:
                label = labels[index : index + 1]
            yield Piece(feed, label, 1, divisible=True, raw=(data,))

    exact = exact_batch(inputs, origin)
    return SampleStream(origin, pieces, exact, preprocessing=picture)


def _pixel_type(tensor: Tensor) -> str:
    """Return the element type of the arrays: raw pixels for a model that takes uint8."""
    if tensor.dtype == "uint8":
        return "uint8"
    return "float32"


def _check(picture: Picture) -> None:
    """Refuse a preprocessing that contradicts itself or the input's type."""
    fault = picture.find_fault()
    if fault is not None:
        why, hint = fault
        raise DataError(
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
