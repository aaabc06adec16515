"""Pictures with the classes of a file `labels.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgepack.data.layouts.class_names import Classes, match_names
from edgepack.data.layouts.picture_set import PictureSet
from edgepack.errors import DataError
from edgepack.runtime.plain import open_plain

LABEL_FILE = "labels.csv"
_DIGITS = 9


def read_labels_csv(folder: Path, paths: tuple[Path, ...], classes: Classes) -> PictureSet:
    """Return the pictures with the labels of the folder's `labels.csv`: indices or names.

    Raises DataError `pictures-labels`, `classes-differ` or `classes-range`.
    """
    path = folder / LABEL_FILE
    table = _read_table(path)
    names = [picture.relative_to(folder).as_posix() for picture in paths]
    absent = sorted(table.keys() - set(names))
    unlabelled = [name for name in names if name not in table]
    if absent or unlabelled:
        raise DataError(
            "pictures-labels",
            f"{path} and the pictures do not match",
            why=f"{_count_names(unlabelled, 'picture(s) without a label')}; "
            f"{_count_names(absent, 'label(s) without a picture')}",
            hint="write one line for each picture in the folder",
        )
    labels = [table[name] for name in names]
    indices, class_names = _read_classes(labels, classes, path)
    return PictureSet("labels.csv", folder, paths, indices, class_names=class_names)


def _read_table(path: Path) -> dict[str, str]:
    """Return the label of each file as text."""
    labels: dict[str, str] = {}
    try:
        with io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            if not {"file", "label"} <= set(table.fieldnames or ()):
                raise ValueError(f"its columns are {table.fieldnames}")
            for row in table:
                name, label = row["file"], (row["label"] or "").strip()
                if not label:
                    raise ValueError(f"line {table.line_num} has no label")
                if labels.setdefault(name, label) != label:
                    raise ValueError(f"line {table.line_num}: {name} has a second label")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            "pictures-labels",
            f"{path} is not a list of labels",
            why=f"{type(error).__name__}: {error}",
            hint="the first line is `file,label`; each other line has a file relative to the "
            "folder and the index or the name of its class",
        ) from error
    return labels


def _read_classes(
    labels: Sequence[str], classes: Classes, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the index of each label, int64, and the names of the classes."""
    # Names come first: classes that are called "0" to "9" fit both, and mean the same.
    names_of_model = set(classes.names)
    if not names_of_model.issuperset(labels) and all(map(_is_index, labels)):
        indices = [_read_index(label, path) for label in labels]
        return _check_range(np.array(indices, np.int64), classes, path)
    if classes.names:
        return match_names(labels, classes, str(path)), classes.names
    numbers = list(filter(_is_index, labels))
    if numbers:
        raise DataError(
            "pictures-labels",
            f"{path} is not a list of labels",
            why=f"some labels are indices, such as {numbers[0]}, and some are names",
            hint="use the indices of the classes or their names for all pictures",
        )
    names = tuple(sorted(set(labels)))
    sorted_classes = Classes(names, str(path))
    return match_names(labels, sorted_classes, str(path)), names


def _is_index(label: str) -> bool:
    # -1 is a picture without a class, as among training samples.
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdecimal()


def _read_index(label: str, path: Path) -> int:
    # More digits than any index has; Python refuses to convert thousands of them.
    if len(label) > _DIGITS:
        raise DataError(
            "classes-range",
            f"{path} has a class that no model has",
            why=f"the index {label[:_DIGITS]}... has {len(label)} digits",
            hint="the first class has the index 0",
        )
    return int(label)


def _check_range(
    indices: np.ndarray, classes: Classes, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    highest = int(indices.max(initial=0))
    if classes.names and highest >= len(classes.names):
        raise DataError(
            "classes-range",
            f"{path} has a class that {classes.origin} lacks",
            why=f"the index {highest}; the {len(classes.names)} classes count from 0",
            hint="the first class has the index 0",
        )
    return indices, classes.names


def _count_names(names: list[str], subject: str) -> str:
    """Return "2 picture(s) without a label, such as a.png", or the count alone for 0."""
    example = f", such as {names[0]}" if names else ""
    return f"{len(names)} {subject}{example}"
