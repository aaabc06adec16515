"""Names of classes: where they are known, and the indices that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.errors import DataError
from edgepack.listing import join_names
from edgepack.runtime.plain import read_plain
from edgepack.spec.suggestions import nearest
from edgepack.spec.tensors import find_repeated

# Names in one message.
_SHOWN = 5


@dataclass(frozen=True)
class Classes:
    """Classes of the model, as far as they are known before its data are read.

    Attributes:
        names: by index; empty if they are not known.
        origin: source of the names, for messages: "[classes] in the manifest".
        folders: True if the subfolders of a folder of pictures are its classes.
    """

    names: tuple[str, ...] = ()
    origin: str = ""
    folders: bool = True


def read_class_file(path: Path) -> tuple[str, ...]:
    """Read the names of classes from a text file, one per line, in the order of their indices.

    Raises DataError `classes-file`.
    """
    try:
        text = read_plain(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid_file(path, f"{type(error).__name__}: {error}") from error
    # A trailing empty line is not a class; one in between would shift the others.
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise _invalid_file(path, "it is empty")
    if "" in lines:
        raise _invalid_file(path, f"line {lines.index('') + 1} is empty")
    refuse_repeated(lines, str(path))
    return tuple(lines)


def _invalid_file(path: Path, why: str) -> DataError:
    return DataError(
        "classes-file",
        f"{path} is not a list of classes",
        why=why,
        hint="write the name of one class on each line, in the model's order",
    )


def refuse_repeated(names: Sequence[str], origin: str) -> None:
    """Raise DataError `classes-repeated` if two classes have one name."""
    name = find_repeated(names)
    if name is not None:
        raise DataError(
            "classes-repeated",
            f"{origin}: two classes have the name {name!r}",
            why="a label could be either of them",
            hint="use a different name for each class",
        )


def match_names(names: Sequence[str], classes: Classes, origin: str) -> np.ndarray:
    """Return the index of each name among the model's classes, int64.

    Args:
        names: of the data's classes, such as those of its folders, or of the label of each sample.
        classes: of the model.
        origin: source of `names`, for messages: "the folders of photos/val".

    Raises DataError `classes-differ` for a name that the model's classes lack.
    """
    indices = {name: index for index, name in enumerate(classes.names)}
    # The labels of a thousand samples may have two names.
    distinct = list(dict.fromkeys(names))
    unknown = [name for name in distinct if name not in indices]
    if unknown:
        near = nearest(unknown[0], classes.names)
        suggestion = f"; did you mean {near}?" if near else ""
        raise DataError(
            "classes-differ",
            f"{origin} and {classes.origin} name different classes",
            why=f"{join_names(unknown, _SHOWN)} in {origin}; {classes.origin}: "
            f"{join_names(classes.names, _SHOWN)}{suggestion}",
            hint="use the same names, or list those of the data in the model's order:\n"
            f"[classes]\nnames = [{_quote(distinct)}]",
        )
    return np.array([indices[name] for name in names], np.int64)


def _quote(names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names[:2])
    return f"{quoted}, ..." if len(names) > 2 else quoted
