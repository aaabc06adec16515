"""Rows of a Hugging Face `datasets.Dataset`, with columns matched to the inputs by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgepack.data.fit import LABELS
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor
from edgepack.spec.tensors import names_of


def is_table(value: object) -> bool:
    """Return True for a Dataset or DatasetDict; the package is not imported."""
    return type(value).__module__.partition(".")[0] == "datasets" and hasattr(value, "column_names")


def read_table(dataset: Any, inputs: Sequence[Tensor], origin: str) -> Iterator[object]:
    """Yield the rows of a dataset, as arrays by input name with the label.

    Columns that are neither an input nor the label, such as the text itself, are left out.

    Args:
        dataset: the dataset.
        inputs: of the model; empty to yield every column of numbers.
        origin: the dataset, as the start of a sentence.

    Raises DataError `samples-split` and `samples-missing-input`.
    """
    if isinstance(dataset, Mapping):
        raise DataError(
            "samples-split",
            f"{origin} holds several splits",
            why=f"its splits: {', '.join(dataset)}",
            hint=f"choose one: dataset[{next(iter(dataset), 'train')!r}]",
        )
    columns = list(dataset.column_names)
    features = dataset.features
    label = _find_label(columns, features, names_of(tuple(inputs)))
    sources = _match(columns, features, label, inputs, origin)
    used = [*sources.values(), *filter(None, [label])]
    for row in dataset.with_format("numpy", columns=used):
        values = {name: row[column] for name, column in sources.items()}
        if label:
            values[LABELS] = row[label]
        yield values


def find_class_names(value: object) -> tuple[str, ...]:
    """Return the names of the classes that a dataset knows; empty for none.

    A Dataset has them in the feature of its labels; an ImageFolder of torchvision has `classes`.
    """
    source: Any = getattr(value, "dataset", value)
    if is_table(source) and not isinstance(source, Mapping):
        label = _find_label(list(source.column_names), source.features, ())
        names = getattr(source.features.get(label), "names", None) if label else None
    else:
        names = getattr(source, "classes", None)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _find_label(columns: Sequence[str], features: Any, inputs: Sequence[str]) -> str:
    """Return the column of labels: "label", "labels", or the only one of classes; "" for none."""
    for name in ("label", LABELS):
        if name in columns and name not in inputs:
            return name
    classes = []
    for name in columns:
        if hasattr(features[name], "names") and name not in inputs:
            classes.append(name)
    return classes[0] if len(classes) == 1 else ""


def _match(
    columns: Sequence[str], features: Any, label: str, inputs: Sequence[Tensor], origin: str
) -> dict[str, str]:
    """Return the column of each input, by the input's name."""
    numeric = []
    for name in columns:
        if name != label and _holds_numbers(features[name]):
            numeric.append(name)
    if not inputs:
        return {name: name for name in numeric}
    names = names_of(tuple(inputs))
    missing = [name for name in names if name not in columns]
    # One input needs no name if there is one column for it.
    if len(names) == len(missing) == len(numeric) == 1:
        return {names[0]: numeric[0]}
    if missing:
        raise DataError(
            "samples-missing-input",
            f"{origin} has no column for the input {missing[0]}",
            why=f"the model's inputs: {', '.join(names)}; columns of numbers: "
            f"{', '.join(numeric) or '-'}",
            hint=f'rename one: dataset.rename_column("COLUMN", "{missing[0]}")',
        )
    return {name: name for name in names}


def _holds_numbers(feature: Any) -> bool:
    """Return True for a column of numbers, or of nested lists of numbers."""
    # List(Value("int64")) and Sequence keep their element in `feature`.
    while hasattr(feature, "feature"):
        feature = feature.feature
    kind = str(getattr(feature, "dtype", ""))
    return kind.startswith(("int", "uint", "float", "bool"))
