"""Bring the dynamic axes of an example to other sizes."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence

import numpy as np

from ..tensor import Tensor

# Another size is at most so many times the usual one, or so much more.
LARGEST_GROWTH, LARGEST_GROWTH_BY = 2, 32
# Reference samples that make one batch.
LARGEST_STACK = 8


def stack_limit(
    inputs: Sequence[Tensor], feeds: Sequence[Mapping[str, np.ndarray]], axis: str
) -> int:
    """Return how many feeds can be stacked along an axis into one batch; 1 for none.

    Such an axis is the first of every input that has it, each feed is one sample along it, and
    the other inputs are the same for all.
    """
    for tensor in inputs:
        arrays = [feed[tensor.name] for feed in feeds]
        if axis in tensor.shape:
            if tensor.shape.index(axis) != 0 or any(array.shape[0] != 1 for array in arrays):
                return 1
        elif any(array.tobytes() != arrays[0].tobytes() for array in arrays):
            return 1
    return min(len(feeds), LARGEST_STACK)


def feed_at_size(
    inputs: Sequence[Tensor], feeds: Sequence[Mapping[str, np.ndarray]], axis: str, size: int
) -> Dict[str, np.ndarray]:
    """Return a feed with one dynamic axis at another size.

    A batch is made of as many reference samples, so that its rows differ in their answers; any
    other axis of the first sample is cut or continued, as `resized` does it.
    """
    if size > stack_limit(inputs, feeds, axis):
        return resized(inputs, feeds[0], {axis: size})
    return {
        tensor.name: np.concatenate([feed[tensor.name] for feed in feeds[:size]])
        if axis in tensor.shape
        else feeds[0][tensor.name]
        for tensor in inputs
    }


def resized(
    inputs: Sequence[Tensor], example: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> Dict[str, np.ndarray]:
    """Return the example with its dynamic axes brought to `sizes`.

    Axes are cut, or continued with the example's own values from their start, so that token
    numbers stay valid and pictures stay natural; an empty axis is continued with zeros. Samples
    along a new batch are not identical where the example has only one: each copy is turned by one
    place along its last axis, so that a graph that mixes samples up is found out.
    """
    arrays: Dict[str, np.ndarray] = {}
    for tensor in inputs:
        array = example[tensor.name]
        for axis, dim in enumerate(tensor.shape):
            size = sizes.get(dim, array.shape[axis]) if isinstance(dim, str) else array.shape[axis]
            if size == array.shape[axis]:
                continue
            if not array.shape[axis]:
                array = np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
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
