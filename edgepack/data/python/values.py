"""Samples from Python: arrays, lists, DataLoaders, Datasets, and functions that return these.

Batches are told from single samples by the number of axes: for an input (batch, 3, 32, 32) an
array (3, 32, 32) is one sample, and an array (64, 3, 32, 32) holds 64. Where the inputs are not
known yet, the kind of the source decides, see `infer_values`.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np

from edgepack.data.arrays import infer_memory, open_memory
from edgepack.data.fit import (
    LABELS,
    check_dtype,
    check_feed,
    check_labels,
    check_names,
    plain_texts,
    shape_error,
    shapes_of,
)
from edgepack.data.python.containers import list_items, read_columns, steady
from edgepack.data.python.convert import is_array, split_item, to_array
from edgepack.data.python.table import find_class_names
from edgepack.data.stream import Digest, Piece, SampleStream, add_array, exact_batch
from edgepack.errors import DataError, EdgepackError
from edgepack.runtime.tensor import Tensor
from edgepack.spec.tensors import names_of

_DEFAULT_NAME = "input"
# Rows of a piece of arrays that a function returned; fixed, so that every pass has the same pieces.
_ROWS = 64


@dataclass(frozen=True, eq=False)
class PythonSamples:
    """Samples that a Python program passes, in place of the path of samples.

    Attributes:
        value: the samples.
        origin: description for the report, such as "DataLoader".
    """

    value: object
    origin: str

    @classmethod
    def of(cls, value: object, role: str = "") -> PythonSamples:
        """Return the samples of a value, with the name of its function or class.

        With a role: "calibration (DataLoader)".
        """
        name = getattr(value, "__qualname__", "") or type(value).__qualname__
        return cls(value, f"{role} ({name})" if role else str(name))

    def __str__(self) -> str:
        return self.origin


def open_value(
    value: object, inputs: tuple[Tensor, ...], *, origin: str, same: bool = True
) -> SampleStream:
    """Open the samples of a Python value; a function is called again for each pass.

    A function takes no argument, and returns whole arrays, or an iterable of items. An item is a
    dict, a tuple or an array, see `convert.split_item`. An array of one axis less than the input
    is a sample without its batch axis. An array of the input's rank is a complete feed; it counts
    as several samples if axis 0 is the batch axis of all inputs.

    Args:
        value: the samples, or a function that returns them.
        inputs: the model's inputs.
        origin: the samples, as the start of a sentence.
        same: refuse a pass that yields different samples than the first complete pass did, since
            the optimized model would be evaluated on other samples than the original.

    Raises DataError.
    """
    if not _is_function(value):
        columns = read_columns(value, names_of(inputs), origin, _types_of(inputs))
        if columns is not None:
            return open_memory(columns, inputs, origin=origin)
    try:
        exact, common = exact_batch(inputs, origin), True
    except DataError:
        # Without a common batch axis only complete feeds fit, and those are never gathered.
        exact, common = None, False

    # Running digests of the first complete pass: first[i] covers the items 0 to i, so that a
    # later pass fails at the first item that differs and not at its end.
    first: list[bytes] = []

    def pieces(size: int) -> Iterator[Piece]:
        digest, digests = hashlib.blake2b(), []
        for index, item in enumerate(_iterate(value, inputs, origin)):
            piece = item
            if not isinstance(piece, Piece):
                piece = _make_piece(item, inputs, f"{origin}, item {index}", common)
            if same:
                _add(digest, piece)
                digests.append(digest.digest())
                if first and digests[-1:] != first[index : index + 1]:
                    raise _changing_samples(origin, f"item {index} differs from")
            yield piece
        if first and len(digests) < len(first):
            raise _changing_samples(origin, f"{len(digests)} items, after {len(first)} in")
        # A pass that the caller abandons never gets here, so `first` always covers all items.
        first[:] = first or digests

    return SampleStream(origin, pieces, exact, class_names=find_class_names(value))


def _types_of(inputs: Sequence[Tensor]) -> dict[str, str]:
    return {tensor.name: tensor.dtype for tensor in inputs}


def _is_function(value: object) -> bool:
    # A module or an instance with __call__ and __iter__ is not a function.
    return callable(value) and not hasattr(value, "__iter__") and not hasattr(value, "__getitem__")


def _iterate(value: object, inputs: tuple[Tensor, ...], origin: str) -> Iterator[object]:
    """Yield the items of a pass, or pieces of whole arrays; turn the user's errors into one."""
    with _user_code(origin):
        if _is_function(value):
            # An iterator is read at once, so it may be the result of a function.
            value = cast("Callable[[], object]", value)()
            if isinstance(value, Iterator):
                yield from value
                return
            columns = read_columns(value, names_of(inputs), origin, _types_of(inputs))
            if columns is not None:
                yield from open_memory(columns, inputs, origin=origin).pieces(_ROWS)
                return
        items = list_items(value, inputs, origin)
        if items.steady:
            yield from steady(items.iterate)
        else:
            yield from items.iterate()


@contextmanager
def _user_code(origin: str) -> Iterator[None]:
    """Turn any exception of the user's code into DataError `samples-function-failed`."""
    try:
        yield
    except EdgepackError:
        raise
    except Exception as error:
        raise DataError(
            "samples-function-failed",
            f"{origin} failed",
            why=describe_error(error),
            hint="iterate over the samples outside edgepack to reproduce the error",
        ) from error


def describe_error(error: BaseException) -> str:
    """Return the text of an exception, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {error}"
    if not frames:
        return text
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})"


def _add(digest: Digest, piece: Piece) -> None:
    for name, array in piece.inputs.items():
        add_array(digest, name, array)
    if piece.labels is not None:
        add_array(digest, LABELS, piece.labels)


def _changing_samples(spec: str, difference: str) -> DataError:
    return DataError(
        "samples-function-changing",
        f"{spec} yields different samples each time it is called",
        why=f"{difference} an earlier call",
        hint="draw random numbers from a generator with a fixed seed, created in the function, "
        "and keep no state between calls",
    )


# For an input x:float32:batch,3,32,32:
#   {"x": (3, 32, 32), "label": 5}           one sample; fed as (1, 3, 32, 32)
#   {"x": (8, 3, 32, 32), "labels": (8,)}    8 samples, which may be cut and joined with others
# For inputs x:float32:batch,3 and state:float32:1,64, which share no batch axis:
#   {"x": (8, 3), "state": (1, 64)}          a complete feed, which counts as one sample
def _make_piece(item: object, inputs: tuple[Tensor, ...], where: str, common: bool) -> Piece:
    """Convert an item to a piece.

    Args:
        item: as the source yields it.
        inputs: the model's inputs.
        where: source and item, as the start of a sentence.
        common: the inputs share a batch axis at 0.
    """
    dtypes, values = _types_of(inputs), {}
    for name, value in split_item(item, names_of(inputs), where).items():
        values[name] = to_array(value, dtypes.get(name), f"{where}: {name}")
    labels = _take_labels(values, inputs)
    check_names(values, inputs, where)
    for tensor in inputs:
        check_dtype(values[tensor.name].dtype, tensor, where)
    feed, has_complete = {}, False
    for tensor in inputs:
        array = values[tensor.name].astype(tensor.dtype, copy=False)
        if array.ndim == tensor.rank:
            has_complete = True
        elif array.ndim == tensor.rank - 1:
            array = array[None]
        else:
            raise shape_error(array.shape, tensor, where)
        feed[tensor.name] = array
    # A complete feed can be cut into samples only if axis 0 is the batch axis of all inputs.
    lengths = {array.shape[:1] for array in feed.values()} - {()}
    divisible = common and (not has_complete or (_has_named_batch(inputs) and len(lengths) == 1))
    count = 1
    if divisible:
        count = feed[inputs[0].name].shape[0]
    if count == 0:
        raise shape_error(feed[inputs[0].name].shape, inputs[0], where)
    if labels is not None:
        labels = plain_texts(np.atleast_1d(labels))
        # The label of a single sample, though not that of a batch of one, may have a shape of its
        # own, such as (4,).
        is_batch = divisible and has_complete
        if count == 1 and not is_batch and len(labels) != 1:
            labels = labels[None]
        check_labels(labels, count, where)
    check_feed(shapes_of(feed), inputs, where, any_batch=divisible)
    return Piece(feed, labels, count, divisible)


def _take_labels(values: dict[str, np.ndarray], inputs: tuple[Tensor, ...]) -> np.ndarray | None:
    """Remove "label" and "labels", unless inputs have these names; return the first of them."""
    labels = None
    for key in ("label", LABELS):
        if key in names_of(inputs):
            continue
        # Both are removed, so that check_names does not refuse the second.
        array = values.pop(key, None)
        if labels is None:
            labels = array
    return labels


def _has_named_batch(inputs: tuple[Tensor, ...]) -> bool:
    """Return True if axis 0 is the same axis in all inputs, and fixed or named like a batch."""
    # (batch, 3) and (batch, 64): True. (length, 3): False, since axis 0 may be a sequence.
    axes = {tensor.shape[:1] for tensor in inputs}
    axis = axes.pop()
    if axes or not axis:
        return False
    return isinstance(axis[0], int) or "batch" in axis[0].lower()


def infer_values(value: object, names: Sequence[str], origin: str) -> tuple[Tensor, ...] | None:
    """Infer a model's inputs from samples: names, types and shapes.

    Whole arrays and the batches of a DataLoader have their samples along axis 0; an item of a
    Dataset is one sample. An item of a list or of a function may be either: with a label that is
    a single number, it is one sample; without, nothing tells, and it is refused.

    Args:
        value: the samples, or a function that returns them.
        names: of the parameters of the model's forward, for items without names.
        origin: the samples, as the start of a sentence.

    Raises DataError `samples-ambiguous`, and those of the items.
    """
    unit = ""
    with _user_code(origin):
        if _is_function(value):
            value = cast("Callable[[], object]", value)()
            if isinstance(value, Iterator):
                value = list(islice(value, 1))
        columns = read_columns(value, _count_names(value, names), origin)
        if columns is not None:
            if isinstance(value, Mapping):
                for name in columns:
                    columns[name] = _narrow(columns[name], value.get(name))
            return infer_memory(columns, origin)
        items = list_items(value, (), origin)
        unit = items.unit
        first = next(steady(items.iterate), None)
    if first is None:
        return None
    values = dict(split_item(first, _count_names(first, names), f"{origin}, item 0"))
    labels = None
    for key in ("label", LABELS):
        if key in values and key not in names:
            labels = values.pop(key)
    unit = unit or _tell_unit(values, labels, origin)
    tensors = []
    for name, content in values.items():
        array = _narrow(to_array(content, None, f"{origin}: {name}"), content)
        shape = array.shape if unit == "sample" else array.shape[1:]
        dtype = array.dtype.newbyteorder("=").name
        tensors.append(Tensor(name, dtype, ("batch", *shape)))
    return tuple(tensors)


def _narrow(array: np.ndarray, content: object) -> np.ndarray:
    """Return numbers of Python, which have no type, in float32, as torch makes them."""
    if array.dtype == np.float64 and isinstance(content, (list, tuple, float)):
        return array.astype(np.float32)
    return array


def _count_names(item: object, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the inputs in an item without names.

    A tuple (x, y) may hold two inputs, or one and its label: the latter is the usual form, so all
    elements but the last are inputs.
    """
    available = [*names] or [_DEFAULT_NAME]
    if isinstance(item, Mapping):
        return available
    count = 1
    if isinstance(item, (tuple, list)) and item:
        first = item[0]
        if isinstance(first, tuple):
            count = len(first)
        elif len(item) > 1 and (isinstance(item, tuple) or is_array(first)):
            count = len(item) - 1
    while len(available) < count:
        available.append(f"{_DEFAULT_NAME}_{len(available)}")
    return available[:count]


def _tell_unit(values: Mapping[str, object], labels: object, origin: str) -> str:
    """Return "sample" for an item whose label is a single number. Raises DataError."""
    if labels is not None and np.ndim(to_array(labels, None, f"{origin}: the label")) == 0:
        return "sample"
    shapes = []
    arguments = []
    for name, content in values.items():
        array = to_array(content, None, f"{origin}: {name}")
        shapes.append(f"{name} is {array.shape}")
        dims = ",".join(map(str, ("batch", *array.shape[1:])))
        arguments.append(f"--input {name}:{array.dtype.name}:{dims}")
    raise DataError(
        "samples-ambiguous",
        f"an item of {origin} may be one sample, or a batch of samples",
        why=f"{'; '.join(shapes)}; no label tells",
        hint=f"declare the inputs, for example: {' '.join(arguments)}; in Python, inputs=[...]",
    )
