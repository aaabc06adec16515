"""Pictures in one subfolder for each class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepack.data.layouts.class_names import Classes, match_names
from edgepack.data.layouts.picture_set import PictureSet


def list_class_folders(folder: Path, paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the names of the class folders, sorted; empty if the subfolders are not classes.

    They are classes if there are at least two, and every picture is in one of them.
    """
    # cat/1.jpg, cat/new/2.jpg and dog/3.jpg have the classes cat and dog; a picture beside them
    # would belong to neither.
    tops = set()
    for path in paths:
        parts = path.relative_to(folder).parts
        if len(parts) == 1:
            return ()
        tops.add(parts[0])
    if len(tops) < 2:
        return ()
    # A class without pictures has an index too, as in training.
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            tops.add(entry.name)
    return tuple(sorted(tops))


def read_class_folders(
    folder: Path, paths: tuple[Path, ...], names: tuple[str, ...], classes: Classes
) -> PictureSet:
    """Return the pictures, each labelled by its folder.

    The index of a class is the position of its folder in the order of the names, or the index of
    this name among the model's classes where these are known.

    Args:
        folder: the folder of the class folders.
        paths: its pictures.
        names: the class folders.
        classes: of the model.

    Raises DataError `classes-differ`.
    """
    indices = np.arange(len(names))
    class_names = names
    notes = []
    if classes.names:
        indices = match_names(names, classes, f"the folders of {folder}")
        class_names = classes.names
    elif len(names) > 10 and all(name.isdecimal() for name in names):
        notes.append("the class folders are sorted as text, as torchvision sorts them: 10 before 2")
    index_of = dict(zip(names, indices.tolist(), strict=True))
    labels = np.array([index_of[path.relative_to(folder).parts[0]] for path in paths], np.int64)
    counts = np.bincount(labels, minlength=len(class_names))
    empty = [name for name in names if not counts[index_of[name]]]
    if empty:
        notes.append(f"{len(empty)} class folder(s) have no pictures, such as {empty[0]}")
    return PictureSet(
        "class folders", folder, paths, labels, class_names=class_names, notes=tuple(notes)
    )
