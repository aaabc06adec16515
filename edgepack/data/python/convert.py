"""Conversion of Python values to arrays: numbers, lists, arrays, tensors, and items of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeGuard, cast

import numpy as np

from edgepack.data.fit import LABELS
from edgepack.errors import DataError

_NUMBERS = (bool, int, float)


class _Tensor(Protocol):
    """Tensor of torch, as far as it is read here; torch itself need not be installed."""

    def detach(self) -> _Tensor: ...
    def cpu(self) -> _Tensor: ...
    def float(self) -> _Tensor: ...
    def numpy(self) -> np.ndarray: ...


def is_tensor(value: object) -> TypeGuard[_Tensor]:
    """Return True for a tensor of torch."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def is_array(value: object) -> bool:
    """Return True for an array or a tensor, which has an element type of its own."""
    return is_tensor(value) or hasattr(value, "__array__")


def to_array(value: object, dtype: str | None, where: str) -> np.ndarray:
    """Convert a value to an array.

    Numbers and lists of numbers have no element type, and take that of the input if it holds
    their values. Arrays and tensors keep theirs; bfloat16, which numpy lacks, becomes float32.

    Args:
        value: a number, an array, a tensor, or nested lists of these.
        dtype: the input's element type; None for labels.
        where: the value, as the start of a sentence.

    Raises DataError `samples-not-numbers`.
    """
    try:
        array = _convert(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            "samples-not-numbers",
            f"{where} cannot be read as an array of numbers",
            why=f"{type(error).__name__}: {error}".splitlines()[0],
            hint="use arrays, tensors, or lists of numbers of one shape",
        ) from error
    if dtype is None or not _is_untyped(value):
        return array
    return _take_type(array, np.dtype(dtype))


def _convert(value: object) -> np.ndarray:
    if is_tensor(value):
        tensor = value.detach().cpu()
        # torch.bfloat16 and numpy have no common type.
        if "bfloat16" in str(getattr(tensor, "dtype", "")):
            tensor = tensor.float()
        return tensor.numpy()
    # A list of tensors, as a collate function without stacking returns it.
    if isinstance(value, (list, tuple)) and any(map(is_tensor, value)):
        return np.stack([_convert(element) for element in value])
    return np.asarray(value)


def _is_untyped(value: object) -> bool:
    """Return True for numbers, and for lists that hold nothing else."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_untyped, value))
    return isinstance(value, _NUMBERS) and not isinstance(value, np.generic)


def _take_type(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return numbers in the input's type; unchanged if it does not hold them."""
    # [1, 2] fits float32 and uint8; [0.5] does not fit int64, nor [300] uint8.
    kinds = {"f": "iufb", "i": "iub", "u": "iub", "b": "b"}
    if array.dtype.kind not in kinds.get(dtype.kind, ""):
        return array
    with np.errstate(over="ignore"):
        cast_array = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast_array, array):
        return array
    return cast_array


def split_item(item: object, names: Sequence[str], where: str) -> Mapping[str, object]:
    """Return the values of an item by input name, and its labels under "labels".

    An item is a dict by input name; a tuple of the inputs in order, optionally followed by the
    label; or the only input. A DataLoader makes lists out of tuples, so a list that holds arrays,
    tensors or dicts is read like a tuple, and a list of numbers like an array.

    Args:
        item: as the source yields it.
        names: of the model's inputs.
        where: the item, as the start of a sentence.

    Raises DataError `samples-function-result`.
    """
    # For the inputs ids and mask:
    #   {"ids": a, "mask": b, "label": 1}    by name
    #   (a, b), (a, b, 1)                    by position
    #   ((a, b), 1), ({"ids": a, "mask": b}, 1)
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if _is_tuple(item):
        return _split_tuple(cast("Sequence[object]", item), names, where)
    if not is_array(item) and not isinstance(item, list):
        raise _wrong_item(where, f"it is {type(item).__name__}", names)
    return _by_position((item,), names, where)


def _is_tuple(item: object) -> bool:
    if isinstance(item, tuple):
        return True
    return isinstance(item, list) and any(is_array(e) or isinstance(e, Mapping) for e in item)


def _split_tuple(item: Sequence[object], names: Sequence[str], where: str) -> Mapping[str, object]:
    # ((a, b), 1) and ({"ids": a}, 1): the inputs in one element, then the label.
    nested = len(item) in (1, 2) and (
        isinstance(item[0], Mapping) or (len(names) > 1 and _is_tuple(item[0]))
    )
    if nested:
        values = dict(split_item(item[0], names, where))
        rest = item[1:]
    else:
        values = dict(_by_position(item[: len(names)], names, where))
        rest = item[len(names) :]
    if len(rest) > 1:
        raise _wrong_item(where, f"it has {len(item)} elements", names)
    if rest:
        if LABELS in values:
            raise _wrong_item(where, "it has labels both in its dict and beside it", names)
        values[LABELS] = rest[0]
    return values


def _by_position(
    values: Sequence[object], names: Sequence[str], where: str
) -> Mapping[str, object]:
    if len(values) != len(names):
        raise _wrong_item(where, f"it has {len(values)} of the {len(names)} inputs", names)
    return dict(zip(names, values, strict=True))


def _wrong_item(where: str, why: str, names: Sequence[str]) -> DataError:
    inputs = ", ".join(names)
    return DataError(
        "samples-function-result",
        f"{where} is neither a dict nor a tuple of the model's inputs",
        why=why,
        hint=f"yield {{{', '.join(f'{name!r}: array' for name in names)}, 'label': number}}, or "
        f"({inputs}, label)",
    )
