"""Recognition of the layout of a data set of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from edgepack.data.layouts import coco, yolo
from edgepack.data.layouts.class_folders import list_class_folders, read_class_folders
from edgepack.data.layouts.class_names import Classes
from edgepack.data.layouts.labels_csv import LABEL_FILE, read_labels_csv
from edgepack.data.layouts.picture_set import PictureSet, find_pictures
from edgepack.data.roles import ROLE_NAMES, find_role
from edgepack.errors import DataError
from edgepack.listing import join_names

_YAML = (".yaml", ".yml")
# Usual names of annotations: instances_val2017.json, _annotations.coco.json, data.yaml.
_NAMES = re.compile(r"instances|annotation|coco|^data(set)?$")
ANNOTATION_SUFFIXES = (*_YAML, ".json")


def find_annotations(path: Path, role: str) -> Path | None:
    """Return the JSON of COCO or the YAML of YOLO for a role, at a path; None if there is none.

    Args:
        path: the file itself, a folder with it, or a folder with such files in `annotations`.
        role: of several COCO files, those whose name contains the role's: instances_val.json.

    Raises DataError `annotations-ambiguous` if several fit.
    """
    if path.is_file():
        return path if path.suffix.lower() in ANNOTATION_SUFFIXES else None
    files = list(_list_annotations(path))
    chosen = [file for file in files if _fits_role(file, role)] if len(files) > 1 else files
    if len(chosen) > 1 or (files and not chosen):
        raise DataError(
            "annotations-ambiguous",
            f"{path} does not have one file of annotations for {role}",
            why=f"it has {join_names([file.name for file in files], 5)}",
            hint=f"name the file instead of the folder, such as {files[0]}",
        )
    return next(iter(chosen), None)


def _list_annotations(folder: Path) -> Iterator[Path]:
    for file in sorted([*folder.glob("*"), *folder.glob("annotations/*")]):
        # Other files with these suffixes may lie beside pictures, and say nothing about boxes.
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix.lower() in ANNOTATION_SUFFIXES:
            status = file.stat()
            if _is_annotation(file, status.st_mtime_ns, status.st_size):
                yield file


# Each role looks for the annotations, and those of a large set take seconds to parse.
@lru_cache(maxsize=16)
def _is_annotation(file: Path, _modified: int, _size: int) -> bool:
    """Return True for annotations; the user did not name this file, so it may be anything."""
    try:
        document = _read(file)
    except DataError:
        # A damaged file of this name must not turn boxes into pictures without labels.
        return _NAMES.search(file.stem.lower()) is not None
    return coco.is_coco(document) or yolo.is_yolo(document)


def _read(file: Path) -> object:
    if file.suffix.lower() == ".json":
        return coco.read_document(file)
    return yolo.read_yaml(file)


def _fits_role(file: Path, role: str) -> bool:
    # instances_val2017.json is for evaluation, instances_train2017.json for calibration.
    return any(name in file.stem.lower() for name in ROLE_NAMES[role])


def is_divided(path: Path) -> bool:
    """Return True if a data set has its own calibration and evaluation samples."""
    calibration = find_annotations(path, "calibration")
    if calibration is None:
        if not path.is_dir():
            return False
        if find_role(path, "calibration") is not None:
            return True
        return yolo.is_divided(yolo.describe_folder(path))
    if calibration != find_annotations(path, "evaluation"):
        return True
    if calibration.suffix.lower() == ".json":
        return False
    return yolo.is_divided(yolo.read_yaml(calibration))


def open_layout(path: Path, role: str, classes: Classes) -> PictureSet | None:
    """Return the pictures of a data set for a role, with their labels.

    Args:
        path: a folder, or a file of annotations.
        role: "calibration", "evaluation" or "training".
        classes: of the model.

    Returns None if the path holds no pictures. Raises DataError if its labels are not valid.
    """
    annotations = find_annotations(path, role)
    if annotations is not None:
        document = _read(annotations)
        if annotations.suffix.lower() == ".json":
            return coco.read_coco(annotations, document, classes)
        return yolo.read_yolo(annotations, document, role, classes)
    if not path.is_dir():
        return None
    # A folder of YOLO without data.yaml.
    described = yolo.describe_folder(path)
    if described is not None:
        return yolo.read_yolo(path / "data.yaml", described, role, classes)
    pictures = find_pictures(path)
    if not pictures:
        return None
    if (path / LABEL_FILE).exists():
        return read_labels_csv(path, pictures, classes)
    names = list_class_folders(path, pictures)
    if names and classes.folders:
        return read_class_folders(path, pictures, names, classes)
    return PictureSet("pictures", path, pictures, notes=_explain_unlabelled(path, pictures, names))


def _explain_unlabelled(
    folder: Path, pictures: tuple[Path, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return a sentence if there are subfolders of pictures that are not taken for classes."""
    nested = [path for path in pictures if path.parent != folder]
    if not nested or names:
        return ()
    if len(nested) < len(pictures):
        return ("the subfolders are not classes, since pictures lie beside them: no labels",)
    return ("the only subfolder with pictures is not a class: no labels",)
