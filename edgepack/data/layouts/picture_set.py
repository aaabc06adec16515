"""Pictures of a data set with their labels, before any picture is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgepack.errors import DataError

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
# Boxes may exceed their picture by this share of its side, and one pixel: annotation tools round.
OVERHANG = 0.01
# Class of the rows that pad the boxes of a sample.
NO_BOX = -1


@dataclass(frozen=True)
class Boxes:
    """Boxes of one picture, as its annotations state them.

    Attributes:
        rows: float64 (n, 5): class, left, top, right, bottom.
        relative: True if the sides are shares of the picture's width and height.
        size: width and height that the annotations state; None if they do not.
        origin: file or entry that states them, for messages.
    """

    rows: np.ndarray
    relative: bool
    size: tuple[int, int] | None
    origin: str

    def in_pixels(self, size: tuple[int, int]) -> np.ndarray:
        """Return the rows in pixels of the picture, upright and of this width and height.

        Raises DataError `boxes-size` or `boxes-outside`.
        """
        # YOLO's 0.5 0.5 0.25 0.5 is relative (0.375, 0.25, 0.625, 0.75): in 640 x 480 pixels
        # (240, 120, 400, 360).
        if self.size is not None and self.size != size:
            raise self._differing_size(size)
        sides = np.array([*size, *size], np.float64)
        rows = self.rows.copy()
        if self.relative:
            rows[:, 1:] *= sides
        corners = rows[:, 1:]
        # The pixels by which each box exceeds its farthest side; a right side of 641 in 640 is 1.
        overhang = np.maximum(-corners, corners - sides).max(axis=1, initial=0)
        allowed = 1 + OVERHANG * max(size)
        for index in np.flatnonzero(overhang > allowed)[:1]:
            box = ", ".join(f"{value:g}" for value in corners[index])
            raise DataError(
                "boxes-outside",
                f"{self.origin}: box {index + 1} is outside of its picture",
                why=f"its corners are ({box}); the picture is {size[0]} x {size[1]} pixels",
                hint="COCO's boxes are left, top, width and height in pixels; YOLO's are centre, "
                "width and height as shares of the picture",
            )
        rows[:, 1:] = np.clip(corners, 0, sides)
        return rows

    def _differing_size(self, size: tuple[int, int]) -> DataError:
        why = f"stated: {self.size}; the upright picture: {size}, as (width, height)"
        hint = "annotate the picture that is in the folder"
        if self.size == size[::-1]:
            hint = "the annotations ignore its EXIF orientation: store the picture upright"
        return DataError(
            "boxes-size",
            f"{self.origin}: the annotations are of a picture of another size",
            why=why,
            hint=hint,
        )


@dataclass(frozen=True)
class PictureSet:
    """Pictures of a data set, with their labels.

    Attributes:
        layout: kind of the data set, for messages.
        folder: base of the pictures' names.
        paths: the pictures, in order.
        classes: index of the class of each picture, int64; None without such labels.
        boxes: boxes of each picture; None without such labels.
        class_names: names of the classes, by their index; empty if they are not known.
        notes: decisions on the labels, in sentences.
    """

    layout: str
    folder: Path
    paths: tuple[Path, ...]
    classes: np.ndarray | None = None
    boxes: tuple[Boxes, ...] | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """Return the name of a picture: its path below the folder."""
        path = self.paths[index]
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return path.as_posix()

    def select(self, indices: Sequence[int]) -> PictureSet:
        """Return the set of some of the pictures, in this order."""
        classes, boxes = self.classes, self.boxes
        if classes is not None:
            classes = classes[np.asarray(indices, np.intp)]
        if boxes is not None:
            boxes = tuple(boxes[index] for index in indices)
        paths = tuple(self.paths[index] for index in indices)
        return replace(self, paths=paths, classes=classes, boxes=boxes)

    def most_boxes(self) -> int:
        """Return the largest number of boxes in a picture, at least 1."""
        most = 1
        for boxes in self.boxes or ():
            most = max(most, len(boxes.rows))
        return most


def is_file(path: Path) -> bool:
    """Return True for a file; False for a name that is too long, too, of which Python complains."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Return True for a folder, as `is_file` does for a file."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


def find_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures in a folder and its subfolders, in the order of their paths."""
    pictures = []
    for path in folder.rglob("*"):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        # Hidden entries are skipped at every level: a dataset from macOS holds ._cat.jpg beside
        # cat.jpg, and a checkout may hold pictures below .git.
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            pictures.append(path)
    return tuple(sorted(pictures))


def make_boxes(
    rows: Sequence[Sequence[float]],
    *,
    relative: bool,
    size: tuple[int, int] | None,
    origin: str,
) -> tuple[Boxes, int]:
    """Return the boxes of one picture, and the number of rows that were dropped.

    Rows without an area and repeated rows are dropped; public data sets contain some.
    """
    table = np.array(rows, np.float64).reshape(-1, 5)
    solid = (table[:, 3] > table[:, 1]) & (table[:, 4] > table[:, 2])
    # `unique` sorts; the first positions restore the order of the annotations.
    _, firsts = np.unique(table[solid], axis=0, return_index=True)
    chosen = table[solid][np.sort(firsts)]
    return Boxes(chosen, relative, size, origin), len(table) - len(chosen)
