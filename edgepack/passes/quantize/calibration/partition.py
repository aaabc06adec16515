"""Divide the columns of wide layers into parts whose moments are estimated apart.

The second moments of K columns take K^2 values and their factorization K^3 / 3 multiplications. A
layer that is too wide for that gets blocks on the diagonal only: weights compensate each other's
rounding errors within a part of the columns. So the time of a layer grows with its weights, and
its memory is bounded. Where the moments of all layers together are too large, the widest parts are
halved, so that one run over the samples serves every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.passes.quantize.layers import Layer, Window

# Columns of one part. On a convolution net of 512 channels, K = 4,608, parts of 1,152 columns lose
# 0.01 dB and take a quarter of the time.
WIDEST, NARROWEST = 1152, 128
# Memory for the second moments of one layer, and of all of them.
LAYER_BYTES = 128 * 2**20
MOMENT_BYTES = 384 * 2**20

# Input of a layer, its window and its number of groups.
ColumnKey = tuple[str, "Window | None", int]


@dataclass(frozen=True)
class Partition:
    """Columns of a layer in parts of one width.

    Attributes:
        groups: of the layer.
        columns: of each group, K.
        width: columns of a part; 0 if there are too many columns for second moments.
        order: (parts of a group * width,) the columns part by part, K for a column of zeros; None
            if the columns are one part.
    """

    groups: int
    columns: int
    width: int
    order: np.ndarray | None = None

    @property
    def parts(self) -> int:
        """Number of parts of a group."""
        return 1 if self.order is None else len(self.order) // self.width

    @property
    def bytes(self) -> int:
        """Size of the second moments in float32."""
        return 4 * self.groups * self.parts * self.width**2

    def split(self, values: np.ndarray) -> np.ndarray:
        """Divide (groups, n, K) values into (groups * parts, n, width)."""
        if self.order is None:
            return values
        padded = values
        if self.order.max() == self.columns:
            padded = np.pad(values, [(0, 0), (0, 0), (0, 1)])
        count = values.shape[1]
        parted = padded[:, :, self.order].reshape(self.groups, count, self.parts, self.width)
        return np.ascontiguousarray(parted.transpose(0, 2, 1, 3)).reshape(-1, count, self.width)

    def join(self, values: np.ndarray) -> np.ndarray:
        """Put (groups * parts, n, width) values back together as (groups, n, K)."""
        if self.order is None:
            return values
        count = values.shape[1]
        parted = values.reshape(self.groups, self.parts, count, self.width).transpose(0, 2, 1, 3)
        joined = np.empty((self.groups, count, self.columns + 1), dtype=values.dtype)
        joined[:, :, self.order] = parted.reshape(self.groups, count, -1)
        return joined[:, :, : self.columns]


def column_key(layer: Layer) -> ColumnKey:
    """Return a key that layers share if they multiply the same columns."""
    return layer.input, layer.window, layer.groups


def divide(layer: Layer, most: int) -> Partition:
    """Divide the columns of a layer into parts of at most `most`.

    A part of a convolution holds some channels at all kernel positions, as neighbouring pixels of
    a channel resemble each other most. Pairs of columns stay together. Example: 4,608 columns of
    512 channels and 9 positions in parts of at most 2,048 give four parts of 1,152, with 128
    channels each, as 512 channels cannot be shared among three.
    """
    groups, columns = layer.groups, int(layer.rows.shape[1])
    if columns <= most:
        return Partition(groups, columns, columns)
    channels = layer.channels // groups
    positions = columns // channels
    for parts in range(2, channels // 2 + 1):
        share = channels // parts
        # A much smaller part than allowed would lose more than parts across channels.
        if 4 * share * positions < most:
            break
        if channels % parts == 0 and share % 2 == 0 and share * positions <= most:
            numbers = np.arange(columns).reshape(positions, parts, share)
            return Partition(groups, columns, share * positions, numbers.transpose(1, 0, 2).ravel())
    count = -(-columns // most)
    width = -(-columns // (2 * count)) * 2
    order = np.minimum(np.arange(count * width), columns)
    return Partition(groups, columns, width, order)


def limit_width(groups: int, columns: int) -> int:
    """Return the most columns of a part of a layer; 0 if there are too many for any part."""
    # 65,536 columns: 4,608 of them would take 1.2 GB, and 288, after four halvings, take 75 MB.
    width = min(columns, WIDEST)
    while 4 * groups * columns * width > LAYER_BYTES and width > NARROWEST:
        width = max(width // 2, NARROWEST)
    if 4 * groups * columns * width > LAYER_BYTES:
        return 0
    return width


def _undivided(layer: Layer) -> Partition:
    """Return the partition of columns without second moments."""
    return Partition(layer.groups, int(layer.rows.shape[1]), 0)


def divide_all(layers: Sequence[Layer], squares: bool) -> dict[ColumnKey, Partition]:
    """Return the partition of the columns of every layer.

    Args:
        layers: layers whose moments will be estimated.
        squares: whether second moments are needed, beside the means.
    """
    readers: dict[ColumnKey, Layer] = {}
    for layer in layers:
        readers.setdefault(column_key(layer), layer)
    partitions: dict[ColumnKey, Partition] = {}
    if not squares:
        for key, layer in readers.items():
            partitions[key] = _undivided(layer)
        return partitions
    for key, layer in readers.items():
        width = limit_width(layer.groups, int(layer.rows.shape[1]))
        partitions[key] = divide(layer, width) if width else _undivided(layer)
    total = sum(partition.bytes for partition in partitions.values())
    while total > MOMENT_BYTES:
        key = max(partitions, key=lambda key: partitions[key].bytes)
        total -= partitions[key].bytes
        if partitions[key].width <= NARROWEST:
            partitions[key] = _undivided(readers[key])
            continue
        partitions[key] = divide(readers[key], max(partitions[key].width // 2, NARROWEST))
        total += partitions[key].bytes
    return partitions
