"""Labels as files have them, converted to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.data.layouts.class_names import Classes, match_names
from edgepack.errors import DataError
from edgepack.listing import join_names


def read_labels(values: Sequence[object], classes: Classes, origin: str) -> np.ndarray | None:
    """Convert labels to numbers: whole numbers, other numbers, or names of classes.

    Args:
        values: the labels as the file has them; None for no label.
        classes: of the model.
        origin: the file, for messages.

    Returns:
        int64 or float64; None without labels.

    Raises:
        DataError: classes-unknown if labels are names and the model has none, classes-differ for
            a name that the model's classes lack.
    """
    if all(value is None for value in values):
        return None
    numbers = [_to_number(value) for value in values]
    if all(isinstance(number, int) for number in numbers):
        return np.array(numbers, np.int64)
    if all(number is not None for number in numbers):
        return np.array(numbers, np.float64)
    names = [str(value).strip() for value in values]
    if not classes.names:
        raise DataError(
            "classes-unknown",
            f"{origin} labels its samples by name, and the model's classes have no names",
            why=f"the names: {join_names(sorted(set(names)), 5)}",
            hint="use the indices of the classes, counted from 0 in the order of the outputs",
        )
    return match_names(names, classes, origin)


def _to_number(value: object) -> int | float | None:
    """Return the number that a label is; None for a name."""
    if isinstance(value, (bool, int, float)):
        return value
    text = str(value).strip()
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return None
