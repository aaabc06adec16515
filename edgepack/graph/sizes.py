"""Sizes of dynamic axes, and arrays brought to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgepack.errors import GraphError
from edgepack.runtime.parity.sizes import LARGEST_GROWTH, LARGEST_GROWTH_BY, resized
from edgepack.runtime.tensor import Tensor

__all__ = ["bind_sizes", "candidate_sizes", "resized"]


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


def candidate_sizes(size: int) -> tuple[int, ...]:
    """Sizes to try for an axis that is `size` long in the example, the most telling first."""
    largest = (LARGEST_GROWTH * size, size + LARGEST_GROWTH_BY)
    wanted = (size + 1, largest[0], 1, size + 2, size // 2, largest[1])
    return tuple(dict.fromkeys(n for n in wanted if n > 0 and n != size))


def _misfit(tensor: Tensor, why: str) -> GraphError:
    return GraphError(
        "example-misfit",
        f"the example inputs do not fit the input {tensor}",
        why=why,
        hint="give the example arrays the shapes of --input, one size to each axis name",
    )
