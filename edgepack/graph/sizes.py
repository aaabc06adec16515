"""Sizes of dynamic axes, and arrays resized to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgepack.errors import GraphError
from edgepack.runtime.parity.sizes import LARGEST_GROWTH, LARGEST_GROWTH_BY, resize_axes
from edgepack.runtime.tensor import Tensor

__all__ = ["bind_sizes", "candidate_sizes", "dynamic_axes", "resize_axes"]


def bind_sizes(inputs: Sequence[Tensor], example: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the size of each dynamic axis in the example, by the axis's name.

    Raises:
        GraphError: `example-misfit` if the example lacks an input, has another rank or fixed
            size, or has two sizes for one name.
    """
    sizes: dict[str, int] = {}
    for tensor in inputs:
        array = example.get(tensor.name)
        if array is None:
            raise _misfit(tensor, "the example has no such array")
        if array.ndim != tensor.rank:
            raise _misfit(tensor, f"the example's shape is {list(array.shape)}")
        for axis, (dim, size) in enumerate(zip(tensor.shape, array.shape, strict=True)):
            # The first axis of a name sets its size: "batch" of 2 in one input must be 2 in all.
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise _misfit(tensor, f"axis {axis} ({dim}) is {size} long, expected {expected}")
    return sizes


def dynamic_axes(tensor: Tensor) -> dict[int, str]:
    """Return the dynamic axes of a tensor, names by position: {0: "batch"} for (batch, 3)."""
    names: dict[int, str] = {}
    for axis, dim in enumerate(tensor.shape):
        if isinstance(dim, str):
            names[axis] = dim
    return names


def candidate_sizes(size: int) -> tuple[int, ...]:
    """Return sizes to try for an axis of `size` in the example, the most conclusive first."""
    # For 2 these are 3, the largest growth in proportion, 1, 4 and the largest absolute growth.
    largest = (LARGEST_GROWTH * size, size + LARGEST_GROWTH_BY)
    candidates = (size + 1, largest[0], 1, size + 2, size // 2, largest[1])
    different = dict.fromkeys(candidates)
    different.pop(size, None)
    different.pop(0, None)
    return tuple(different)


def _misfit(tensor: Tensor, why: str) -> GraphError:
    return GraphError(
        "example-misfit",
        f"the example inputs do not fit the input {tensor}",
        why=why,
        hint="make the example arrays match --input, with one size for each axis name",
    )
