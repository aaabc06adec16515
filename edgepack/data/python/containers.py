"""Kinds of samples from Python: whole arrays, tables, DataLoaders, Datasets, and iterables."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepack.data.fit import LABELS
from edgepack.data.python.convert import is_array, split_item, to_array
from edgepack.data.python.table import is_table, read_table
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

SEED = 0


@dataclass(frozen=True)
class Items:
    """Iterable of items, each of which is one sample or a batch of samples.

    Attributes:
        iterate: starts a pass over the items.
        unit: "sample" or "batch" if the source says what an item is; "" for either.
        steady: True if random numbers of every pass start from one seed, so that a shuffling
            DataLoader and random augmentation repeat.
    """

    iterate: Callable[[], Iterator[object]]
    unit: str = ""
    steady: bool = False


def read_columns(
    value: object, names: Sequence[str], origin: str, dtypes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray] | None:
    """Return the arrays of a value that holds whole arrays by name; None for any other value.

    A dict of arrays is like an `.npz` file, an array like an `.npy` file. A tuple of arrays holds
    the inputs in order, then optionally the labels: (images, labels).

    Args:
        value: the samples.
        names: of the model's inputs.
        origin: the samples, as the start of a sentence.
        dtypes: element types of the inputs, for lists of numbers.
    """
    if isinstance(value, Mapping):
        columns = dict(value)
        if not columns or not all(map(_is_column, columns.values())):
            return None
        # Singular or plural: an array of labels has one for each sample in any case.
        if "label" in columns and "label" not in names and LABELS not in columns:
            columns[LABELS] = columns.pop("label")
    elif is_array(value) or _is_tuple_of_arrays(value):
        columns = dict(split_item(value, names, origin))
    else:
        return None
    arrays = {}
    for name, array in columns.items():
        arrays[str(name)] = to_array(array, (dtypes or {}).get(str(name)), origin)
    return arrays


def _is_tuple_of_arrays(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(is_array, value))


def _is_column(value: object) -> bool:
    return is_array(value) or (isinstance(value, list) and bool(value))


def list_items(value: object, inputs: Sequence[Tensor], origin: str) -> Items:
    """Return the items of a value that is not a function.

    Raises DataError `samples-function-result` for a value that is not iterable, and
    `samples-one-pass` for an iterator, which can be read only once.
    """
    if is_table(value):
        return Items(lambda: read_table(value, inputs, origin), "sample")
    if _is_loader(value):
        # batch_size=None turns batching off: the loader yields what the dataset holds.
        unit = "batch" if getattr(value, "batch_sampler", None) is not None else "sample"
        return Items(lambda: _iterate_loader(value), unit, steady=True)
    if _is_dataset(value):
        return Items(lambda: _iterate_dataset(value), "sample", steady=True)
    if isinstance(value, Iterator):
        raise DataError(
            "samples-one-pass",
            f"{origin} can be read only once",
            why=f"it is a {type(value).__name__}, and samples are read several times",
            hint="pass the function itself instead of its result: samples, not samples(); or a "
            "list",
        )
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise _not_samples(origin, type(value).__name__)
    return Items(lambda: iter(value))


def _not_samples(origin: str, kind: str) -> DataError:
    return DataError(
        "samples-function-result",
        f"{origin} does not hold samples",
        why=f"it is {kind}",
        hint='use dicts {"INPUT": array, "label": number}, tuples (array, label), arrays, a '
        "DataLoader or a Dataset, or a function that yields them",
    )


def _is_loader(value: object) -> bool:
    return hasattr(value, "dataset") and hasattr(value, "batch_sampler")


def _is_dataset(value: object) -> bool:
    """Return True for a map-style dataset of torch: it is indexed, and its length is known."""
    if isinstance(value, (list, tuple, Mapping, str, bytes)) or is_array(value):
        return False
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _iterate_dataset(dataset: Any) -> Iterator[object]:
    # Without an __iter__ of its own, iteration ends at an IndexError, which few datasets raise.
    for index in range(len(dataset)):
        yield dataset[index]


def _iterate_loader(loader: Any) -> Iterator[object]:
    """Iterate over a DataLoader, whose own generator of random numbers, if any, is left as is."""
    generator = getattr(loader, "generator", None)
    if generator is None:
        yield from loader
        return
    state = generator.get_state()
    try:
        generator.manual_seed(SEED)
        yield from loader
    finally:
        generator.set_state(state)


def steady(iterate: Callable[[], Iterator[object]]) -> Iterator[object]:
    """Iterate with random numbers that start from one seed, and leave the caller's alone."""
    # The state is exchanged around every step, since the code between two steps draws random
    # numbers of its own.
    states = _seed_states()
    outer = _get_states()
    _set_states(states)
    try:
        iterator = iterate()
    finally:
        states = _get_states()
        _set_states(outer)
    while True:
        outer = _get_states()
        _set_states(states)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            states = _get_states()
            _set_states(outer)
        yield item


@dataclass(frozen=True)
class _States:
    """States of the generators of random numbers of Python, numpy and torch."""

    python: Any
    numpy: Any
    torch: Any


def _get_states() -> _States:
    torch = sys.modules.get("torch")
    state = torch.get_rng_state() if torch else None
    return _States(random.getstate(), np.random.get_state(), state)


def _set_states(states: _States) -> None:
    random.setstate(states.python)
    np.random.set_state(states.numpy)
    torch = sys.modules.get("torch")
    if torch and states.torch is not None:
        torch.set_rng_state(states.torch)


def _seed_states() -> _States:
    torch = sys.modules.get("torch")
    state = None
    if torch:
        state = torch.Generator().manual_seed(SEED).get_state()
    legacy = np.random.RandomState(SEED).get_state()
    return _States(random.Random(SEED).getstate(), legacy, state)  # noqa: S311
