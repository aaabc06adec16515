"""Split arrays of samples into the feeds of single calls, and explain invalid feeds."""

from __future__ import annotations

from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from ..tensor import Dim, Tensor


def fixed_batch(inputs: Sequence[Tensor]) -> Optional[int]:
    """Return the fixed batch of the model; None if its batch axis is dynamic."""
    for tensor in inputs:
        if tensor.shape and isinstance(tensor.shape[0], int):
            return tensor.shape[0]
    return None


def whole_feeds(arrays: Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> bool:
    """Return True if each row is a whole feed: some array has one axis more than its input.

    An array of the input's rank has its samples along the model's batch axis, axis 0. For an input
    (batch, 3, 32, 32) an array (100, 3, 32, 32) holds 100 samples, and one of shape
    (25, 4, 3, 32, 32) holds 25 feeds of 4 samples.
    """
    return any(arrays[tensor.name].ndim == tensor.rank + 1 for tensor in inputs)


def feeds(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[Tensor], size: int = 1
) -> Iterator[Dict[str, np.ndarray]]:
    """Yield the feed of each call, at most `size` samples at a time.

    Raises InputError if an input has no array, if the arrays hold different numbers of samples or
    samples of another shape, or if their number is no multiple of the model's fixed batch.
    """
    missing = [tensor.name for tensor in inputs if tensor.name not in arrays]
    if missing:
        raise InputError(
            "input-names",
            "the samples lack an input",
            why=f"missing: {', '.join(missing)}; there are: {', '.join(sorted(arrays)) or 'none'}",
            hint=f"store one array per input under its name: numpy.savez(file, {missing[0]}=...)",
        )
    for tensor in inputs:
        if arrays[tensor.name].ndim == 0:
            raise InputError(
                "input-shape",
                "an input has the wrong shape",
                why=f"{tensor.name} is a single value",
                hint="axis 0 of every array must count the samples",
            )
    sizes = {len(arrays[tensor.name]) for tensor in inputs}
    if len(sizes) != 1:
        counts = [f"{tensor.name}: {len(arrays[tensor.name])}" for tensor in inputs]
        raise InputError(
            "input-counts",
            "the inputs hold different numbers of samples",
            why=", ".join(counts),
            hint="axis 0 of every array must count the samples",
        )
    (count,) = sizes
    if count == 0:
        raise InputError(
            "input-counts",
            "there are no samples",
            why="every array has 0 rows",
            hint="axis 0 of every array must count the samples",
        )
    for tensor in inputs:
        _check_shape(arrays[tensor.name], tensor)
    if whole_feeds(arrays, inputs):
        for i in range(count):
            yield {tensor.name: _feed_row(arrays[tensor.name], i, tensor) for tensor in inputs}
        return
    fixed = fixed_batch(inputs)
    step = fixed or size
    if fixed and count % fixed:
        raise InputError(
            "input-counts",
            "the samples do not fill the model's batch",
            why=f"the batch is fixed to {fixed}; there are {count} samples",
            hint=f"give a multiple of {fixed} samples",
        )
    for start in range(0, count, step):
        yield {tensor.name: arrays[tensor.name][start : start + step] for tensor in inputs}


def _check_shape(array: np.ndarray, tensor: Tensor) -> None:
    """Raise InputError unless the rows are samples of the input, or whole feeds."""
    # For an input (batch, 1, 8, 8), an array (10, 3, 8, 8) holds 10 samples of (3, 8, 8), where the
    # model takes samples of (1, 8, 8).
    row, rows, expected = array.shape[1:], "samples", tensor.shape[1:]
    if array.ndim == tensor.rank + 1:
        rows, expected = "feeds", tensor.shape
    if len(row) == len(expected) and _dims_fit(expected, row, {}):
        return
    why = f"the array {tensor.name} is {_format_shape(array.shape)}"
    if len(row) == len(expected):
        why += f": {len(array)} {rows} of {_format_shape(row)}"
    raise InputError(
        "input-shape",
        "an input has the wrong shape",
        why=why,
        hint=f"the model takes {rows} of {_format_shape(expected)}",
    )


def _format_shape(shape: Sequence[Dim]) -> str:
    # ("batch", 3) is "(batch, 3)", and (3,) is "(3,)".
    if len(shape) == 1:
        return f"({shape[0]},)"
    return f"({', '.join(map(str, shape))})"


def _feed_row(array: np.ndarray, row: int, tensor: Tensor) -> np.ndarray:
    # `[row, ...]` stays an array even if the feed is a scalar.
    if array.ndim > tensor.rank:
        return array[row, ...]
    return array[row : row + 1]


def tied_axes(inputs: Sequence[Tensor]) -> List[Tuple[str, int, str, int]]:
    """Return the pairs of axes that share a symbolic dimension.

    Inputs a: (batch, 3) and b: (batch, time) give [("a", 0, "b", 0)].
    """
    # Symbolic dimension -> the first axis that has it, with which all others are paired.
    first: Dict[str, Tuple[str, int]] = {}
    pairs = []
    for tensor in inputs:
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, str):
                name, first_axis = first.setdefault(dim, (tensor.name, axis))
                if (name, first_axis) != (tensor.name, axis):
                    pairs.append((name, first_axis, tensor.name, axis))
    return pairs


def find_fault(inputs: object, expected: Sequence[Tensor]) -> Optional[InputError]:
    """Return the error for an invalid feed; None for a valid one."""
    names = [tensor.name for tensor in expected]
    signature = "the model takes " + "; ".join(map(str, expected))
    if not isinstance(inputs, Mapping):
        why = f"they are {_describe(inputs)}, not arrays by name"
        return InputError("input-names", "the inputs do not fit", why=why, hint=signature)
    faults = [f"{name} is missing" for name in names if name not in inputs]
    # Sorted as strings: the keys of a user's mapping may be of any type.
    for name in sorted(set(inputs) - set(names), key=str):
        faults.append(f"{name} is unknown")
    if faults:
        return InputError(
            "input-names", "the inputs do not fit", why="; ".join(faults), hint=signature
        )
    sizes: Dict[str, int] = {}
    for tensor in expected:
        array = inputs[tensor.name]
        why = f"{tensor.name} is {_describe(array)}"
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(tensor.dtype):
            return InputError("input-type", "an input has the wrong type", why=why, hint=signature)
        if array.ndim != tensor.rank or not _dims_fit(tensor.shape, array.shape, sizes):
            return InputError(
                "input-shape", "an input has the wrong shape", why=why, hint=signature
            )
    return None


def _dims_fit(dims: Sequence[Dim], shape: Sequence[int], sizes: Dict[str, int]) -> bool:
    """Compare a shape with dimensions; record the size of each new symbolic one in `sizes`."""
    for dim, size in zip(dims, shape):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if expected != size:
            return False
    return True


def _describe(array: object) -> str:
    if isinstance(array, np.ndarray):
        text = f"{array.dtype.name}:{','.join(map(str, array.shape))}"
        if not array.dtype.isnative:
            text += " in the other byte order"
        return text
    return f"a {type(array).__name__}"
