"""From arrays with samples along axis 0 to what is fed to the model in one call, and its faults."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from ..tensor import Tensor


def fixed_batch(inputs: Sequence[Tensor]) -> Optional[int]:
    """The batch that the model is fixed to; None where its batch axis is dynamic."""
    sizes = [tensor.shape[0] for tensor in inputs if tensor.shape]
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed else None


def whole_feeds(arrays: Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> bool:
    """Whether each row is a whole feed: some array has one axis more than its input.

    An array of its input's rank has its samples along the model's own batch axis, axis 0.
    """
    return any(arrays[tensor.name].ndim == tensor.rank + 1 for tensor in inputs)


def feeds(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[Tensor], size: int = 1
) -> Iterator[Dict[str, np.ndarray]]:
    """What to feed, call by call, at most `size` samples at a time.

    Raises InputError where an input has no array, where the arrays hold different numbers of
    samples, or where that number is no multiple of the model's fixed batch.
    """
    missing = [tensor.name for tensor in inputs if tensor.name not in arrays]
    if missing:
        raise InputError(
            "input-names",
            "the samples lack an input",
            why="missing: {}; there are: {}".format(
                ", ".join(missing), ", ".join(sorted(arrays)) or "none"
            ),
            hint="store one array per input under its name: numpy.savez(file, {}=...)".format(
                missing[0]
            ),
        )
    for tensor in inputs:
        if arrays[tensor.name].ndim == 0:
            raise InputError(
                "input-shape",
                "an input has the wrong shape",
                why="{} is a single value".format(tensor.name),
                hint="samples stand along axis 0 of every array",
            )
    counts = {tensor.name: len(arrays[tensor.name]) for tensor in inputs}
    if len(set(counts.values())) != 1:
        raise InputError(
            "input-counts",
            "the inputs hold different numbers of samples",
            why=", ".join("{}: {}".format(*item) for item in counts.items()),
            hint="samples stand along axis 0 of every array",
        )
    count = next(iter(counts.values()))
    if count == 0:
        raise InputError(
            "input-counts",
            "there are no samples",
            why="every array has 0 rows",
            hint="samples stand along axis 0 of every array",
        )
    if whole_feeds(arrays, inputs):
        for i in range(count):
            # `[i, ...]` keeps an array also where a whole feed is a scalar.
            yield {
                t.name: arrays[t.name][
                    (i, ...) if arrays[t.name].ndim > t.rank else slice(i, i + 1)
                ]
                for t in inputs
            }
        return
    fixed = fixed_batch(inputs)
    step = fixed or size
    if fixed and count % fixed:
        raise InputError(
            "input-counts",
            "the samples do not fill the model's batch",
            why="the batch is fixed to {}; there are {} samples".format(fixed, count),
            hint="give a multiple of {} samples".format(fixed),
        )
    for start in range(0, count, step):
        yield {tensor.name: arrays[tensor.name][start : start + step] for tensor in inputs}


def ties(inputs: Sequence[Tensor]) -> List[Tuple[str, int, str, int]]:
    """The axes that have one name, and so are to be of one size, by twos."""
    first: Dict[str, Tuple[str, int]] = {}
    found = []
    for tensor in inputs:
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, str):
                one = first.setdefault(dim, (tensor.name, axis))
                if one != (tensor.name, axis):
                    found.append((*one, tensor.name, axis))
    return found


def explain(inputs: Any, expected: Sequence[Tensor]) -> Optional[InputError]:
    """What is wrong with a feed; None where nothing is."""
    names = [tensor.name for tensor in expected]
    signature = "the model takes " + "; ".join(map(str, expected))
    if not isinstance(inputs, Mapping):
        found = "they are {}, not arrays by name".format(_describe(inputs))
        return InputError("input-names", "the inputs do not fit", why=found, hint=signature)
    unknown = sorted(set(inputs) - set(names), key=str)
    missing = [name for name in names if name not in inputs]
    if unknown or missing:
        told = ["{} is missing".format(n) for n in missing]
        told += ["{} is unknown".format(n) for n in unknown]
        return InputError(
            "input-names", "the inputs do not fit", why="; ".join(told), hint=signature
        )
    sizes: Dict[str, int] = {}
    for tensor in expected:
        array = inputs[tensor.name]
        found = "{} is {}".format(tensor.name, _describe(array))
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(tensor.dtype):
            return InputError(
                "input-type", "an input has the wrong type", why=found, hint=signature
            )
        fits = array.ndim == tensor.rank and all(
            (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) == size
            for dim, size in zip(tensor.shape, array.shape)
        )
        if not fits:
            return InputError(
                "input-shape", "an input has the wrong shape", why=found, hint=signature
            )
    return None


def _describe(array: Any) -> str:
    if isinstance(array, np.ndarray):
        order = "" if array.dtype.isnative else " in the other byte order"
        return "{}:{}{}".format(array.dtype.name, ",".join(map(str, array.shape)), order)
    return "a {}".format(type(array).__name__)
