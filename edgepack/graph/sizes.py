"""Sizes of dynamic axes, and arrays brought to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgepack.errors import GraphError
from edgepack.runtime.tensor import Tensor


def bind_sizes(inputs: Sequence[Tensor], example: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The size that each dynamic axis has in the example, by the axis's name.

    Raises:
        GraphError: `example-misfit` where the example lacks an input, has another rank or fixed
            size, or gives two sizes to one name.
    """
    sizes: dict[str, int] = {}
    for tensor in inputs:
        array = example.get(tensor.name)
        if array is None:
            raise _misfit(tensor, "the example does not hold it")
        if array.ndim != tensor.rank:
            raise _misfit(tensor, f"the example's shape is {list(array.shape)}")
        for axis, (dim, size) in enumerate(zip(tensor.shape, array.shape, strict=True)):
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise _misfit(tensor, f"axis {axis} ({dim}) is {size} long, expected {expected}")
    return sizes


def resized(
    inputs: Sequence[Tensor], example: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The example with its dynamic axes brought to `sizes`.

    Axes are cut, or continued with the example's own values from their start, so that token
    numbers stay valid and pictures stay natural. Samples along a new batch are not identical
    where the example has only one: each copy is turned by one place along its last axis, so
    that a graph that mixes samples up is found out.
    """
    arrays: dict[str, np.ndarray] = {}
    for tensor in inputs:
        array = example[tensor.name]
        for axis, dim in enumerate(tensor.shape):
            size = sizes.get(dim, array.shape[axis]) if isinstance(dim, str) else array.shape[axis]
            if size == array.shape[axis]:
                continue
            copies = -(-size // array.shape[axis])
            blocks = [
                np.roll(array, turn, axis=-1) if axis < array.ndim - 1 else array
                for turn in range(copies)
            ]
            array = np.concatenate(blocks, axis=axis).take(np.arange(size), axis=axis)
        # Not `ascontiguousarray`, which makes an array of one axis of a single number.
        arrays[tensor.name] = np.asarray(array, order="C")
    return arrays


def candidate_sizes(size: int) -> tuple[int, ...]:
    """Sizes to try for an axis that is `size` long in the example, the most telling first."""
    wanted = (size + 1, 2 * size, 1, size + 2, size // 2, size + 32)
    return tuple(dict.fromkeys(n for n in wanted if n > 0 and n != size))


def _misfit(tensor: Tensor, why: str) -> GraphError:
    return GraphError(
        "example-misfit",
        f"the example inputs do not fit the input {tensor}",
        why=why,
        hint="give the example arrays the shapes of --input, one size to each axis name",
    )
