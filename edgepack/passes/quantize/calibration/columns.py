"""Columns that the rows of a layer multiply, from a few positions of its input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.passes.quantize.layers import Layer, Window


def spread(items: np.ndarray, most: int, offset: int) -> np.ndarray:
    """Return about `most` entries along axis 0 at most, evenly spread from `offset` on.

    Example: 10 items with `most` = 4 and `offset` = 1 give items 1, 4 and 7.
    """
    if len(items) <= most:
        return items
    # Rows of a feature map often have an even length; an odd step does not repeat their columns.
    step = -(-len(items) // most) | 1
    return items[offset % step :: step]


def count_positions(layer: Layer, shape: tuple[int, ...]) -> int:
    """Return the number of positions that a layer has on an input of this shape."""
    if layer.window is None:
        return int(np.prod(shape[:-1]))
    return int(shape[0] * np.prod(_output_sizes(layer.window, shape[2:])))


def extract_columns(
    layer: Layer, values: np.ndarray, most: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that each row of a layer multiplies, and how often they are not padding.

    There are about `most` positions at most, evenly spread; `offset` moves their start. Example: a
    3 x 3 convolution over (1, 8, 32, 32) with padding 1 has 1,024 positions and K = 72.

    Returns:
        (groups, positions, K) columns, and (kernel positions,) the number of positions at which
        each kernel position lies within the input.
    """
    window = layer.window
    if window is None:
        columns = spread(values.reshape(-1, values.shape[-1]), most, offset)[None]
        return columns, np.array([columns.shape[1]])
    samples, channels, *spatial = values.shape
    outputs = _output_sizes(window, spatial)
    positions = spread(np.arange(samples * int(np.prod(outputs))), most, offset)
    sample, *indices = np.unravel_index(positions, (samples, *outputs))
    where, inside = _read_positions(window, spatial, indices)
    size = int(np.prod(spatial))
    flat = values.reshape(samples, channels, size)
    if where.size >= samples * size:
        # Most pixels are read: with channels last, each is one contiguous copy.
        rows = np.ascontiguousarray(flat.transpose(0, 2, 1)).reshape(-1, channels)
        patches = rows[sample[:, None] * size + where]
    else:
        patches = flat[sample[:, None], :, where]
    if not inside.all():
        patches *= inside[..., None]
    count, taps = where.shape
    patches = patches.reshape(count, taps, layer.groups, channels // layer.groups)
    columns = np.ascontiguousarray(patches.transpose(2, 0, 1, 3))
    return columns.reshape(layer.groups, count, -1), inside.sum(axis=0)


def _output_sizes(window: Window, spatial: Sequence[int]) -> list[int]:
    sizes = []
    for axis, (before, after) in enumerate(window.padding(tuple(spatial))):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        sizes.append((spatial[axis] + before + after - reach) // window.strides[axis] + 1)
    return sizes


def _read_positions(
    window: Window, spatial: Sequence[int], indices: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions, kernel positions): the flat pixel that each reads, and whether it exists.

    Example: over a row of 5 pixels a kernel of 3 with padding 1 reads at position 0 the pixels -1,
    0 and 1; the first does not exist, and pixel 0 stands in for it.

    Args:
        window: of a convolution.
        spatial: size of its input along each axis.
        indices: of its output along each axis, (positions,).
    """
    count = len(indices[0])
    where = np.zeros((count, 1), dtype=np.int64)
    inside = np.ones((count, 1), dtype=bool)
    for axis, (before, _) in enumerate(window.padding(tuple(spatial))):
        start = indices[axis][:, None] * window.strides[axis] - before
        pixel = start + np.arange(window.kernel[axis]) * window.dilations[axis]
        exists = (pixel >= 0) & (pixel < spatial[axis])
        pixel = np.clip(pixel, 0, spatial[axis] - 1)
        # Kernel positions in the order of rows: those of the last axis vary fastest.
        where = where[:, :, None] * spatial[axis] + pixel[:, None, :]
        where = where.reshape(count, -1)
        inside = (inside[:, :, None] & exists[:, None, :]).reshape(count, -1)
    return where, inside
