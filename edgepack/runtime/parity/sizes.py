"""Bring the dynamic axes of an example to other sizes."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence

import numpy as np

from ..tensor import Tensor

# Limits of another size: twice the usual one plus 32, so 232 for samples of 100 tokens.
LARGEST_GROWTH, LARGEST_GROWTH_BY = 2, 32
# Reference samples that make one batch.
LARGEST_STACK = 8


def stack_limit(
    inputs: Sequence[Tensor], feeds: Sequence[Mapping[str, np.ndarray]], axis: str
) -> int:
    """Return how many feeds can be stacked along an axis into one batch; 1 for none.

    Such an axis is the first of every input that has it, each feed is one sample along it, and
    the other inputs are the same for all. Of texts, the first of one length can be stacked.
    """
    limit = min(len(feeds), LARGEST_STACK)
    for tensor in inputs:
        batched = axis in tensor.shape
        if batched and tensor.shape.index(axis) != 0:
            return 1
        first = feeds[0][tensor.name]
        for number, feed in enumerate(feeds):
            array = feed[tensor.name]
            # Of shape (batch, 3), an array (1, 3) is one sample and (4, 3) is not.
            if batched and array.shape[0] != 1:
                return 1
            if not batched and array.tobytes() != first.tobytes():
                return 1
            if array.shape != first.shape:
                limit = min(limit, number)
    return limit


def feed_at_size(
    inputs: Sequence[Tensor], feeds: Sequence[Mapping[str, np.ndarray]], axis: str, size: int
) -> Dict[str, np.ndarray]:
    """Return a feed with one dynamic axis at another size.

    A batch is made of as many reference samples, so that its rows differ in their answers; any
    other axis of the first sample is cut or continued, as `resize_axes` does it.
    """
    if size > stack_limit(inputs, feeds, axis):
        return resize_axes(inputs, feeds[0], {axis: size})
    stacked: Dict[str, np.ndarray] = {}
    for tensor in inputs:
        stacked[tensor.name] = feeds[0][tensor.name]
        if axis in tensor.shape:
            stacked[tensor.name] = np.concatenate([feed[tensor.name] for feed in feeds[:size]])
    return stacked


def resize_axes(
    inputs: Sequence[Tensor], example: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> Dict[str, np.ndarray]:
    """Return the example with its dynamic axes resized.

    Axes are cut, or extended by repeating the example's values, so that token numbers stay valid
    and images stay natural; an empty axis is extended with zeros. Copies along an axis other than
    the last are rolled along the last one, so that a graph that mixes up samples shows an error:

        [[1, 2, 3]] with a batch of 2 becomes [[1, 2, 3], [3, 1, 2]]
    """
    arrays: Dict[str, np.ndarray] = {}
    for tensor in inputs:
        array = example[tensor.name]
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, str) and dim in sizes:
                array = _resize_axis(array, axis, sizes[dim])
        # `ascontiguousarray` would turn a scalar into an array of one axis.
        arrays[tensor.name] = np.asarray(array, order="C")
    return arrays


def _resize_axis(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    old_size = array.shape[axis]
    if size == old_size:
        return array
    if not old_size:
        return np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
    # From 3 to 8 rows takes ceil(8 / 3) = 3 copies, of which the first 8 rows stay.
    blocks = []
    for shift in range(-(-size // old_size)):
        if axis == array.ndim - 1:
            shift = 0
        blocks.append(np.roll(array, shift, axis=-1))
    return np.concatenate(blocks, axis=axis).take(np.arange(size), axis=axis)
