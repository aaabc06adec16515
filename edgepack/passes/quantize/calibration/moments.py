"""Estimate the means and second moments of every layer's input, streamed.

For a layer y = W x + b whose input is quantized to q, replacing W by V costs E|W x - V q|^2. With
the bias correction, b' = b + E[W x - V q], the cost depends on the covariance of x; without it, on
E[x x^T]. Rounding adds step^2 / 12 to either's diagonal. This module estimates both, and the means.

Bias correction is that of Nagel et al., "Data-free quantization through weight equalization and
bias correction" (2019), with measured means: E[x] of the float network, and E[q] of the same values
after quantization. Since earlier layers are corrected in the same way, the means of a layer's input
are those of the float network.

A layer of K columns needs a few times K positions, not all: the loss of a rounding, as N positions
estimate it, has a relative standard error of sqrt(2 / N) (exactly so for normal inputs). The rate
of positions falls as samples come, and the weight of each rises, so that all samples count alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.passes.quantize.calibration.columns import (
    count_positions,
    extract_columns,
    spread,
)
from edgepack.passes.quantize.calibration.partition import Partition
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.scheme import Affine

# Positions that enter the second moments of a layer, for each column of a part, and their bounds.
# Each group of a convolution has columns of its own, but few of them.
POSITIONS_A_COLUMN, MOST_POSITIONS = 8, 12288
FEWEST_POSITIONS, FEWEST_IN_GROUPS = 2048, 512
# Samples after which the rate of positions falls for the first time, where each has enough.
FIRST_SAMPLES = 16
# Columns that are read at a time. The widest layers read fewer samples at once.
COLUMN_BYTES = 16 * 2**20
# Columns that enter the second moments at a time, and their bytes: large products are faster than
# small ones, but for the many small ones of a grouped convolution.
TOGETHER, WAITING_BYTES = 512, 2 * 2**20


@dataclass
class Moments:
    """Moments of the columns that a layer multiplies.

    Attributes:
        mean: (groups, K) E[x].
        error: (groups, K) E[q - x]; zeros if the input stays float.
        variance: (groups * parts, width, width) covariance of x, part by part; empty if only means
            are needed.
        partition: of the columns.
        positions: number of independent positions that are worth as much; infinity if unknown.
    """

    mean: np.ndarray
    error: np.ndarray
    variance: np.ndarray
    partition: Partition
    positions: float = np.inf

    @property
    def compensated(self) -> bool:
        """True if there are second moments, by which weights compensate each other's errors."""
        return self.variance.size > 0

    def loss(self, corrected: bool, noise: float) -> np.ndarray:
        """Return (groups * parts, width, width): e^T loss e is the cost of an error e of weights.

        Args:
            corrected: whether the bias takes the mean error.
            noise: variance of the rounding of the input.
        """
        loss = np.array(self.variance, dtype=np.float32)
        if not corrected:
            mean = self.partition.split(self.mean[:, None])[:, 0].astype(np.float32)
            loss += mean[:, :, None] * mean[:, None, :]
        # Inputs that are constant on the samples still carry the noise of their rounding.
        np.einsum("gkk->gk", loss)[:] += noise
        return loss

    def mean_error(self, layer: Layer, effective: np.ndarray) -> np.ndarray:
        """Return (outputs,) E[W x - V q], to be added to the bias of a layer.

        Args:
            layer: with its real weights W as rows.
            effective: (outputs, K) weights V that the integers represent.
        """
        # The means are per group, (groups, K), and the rows (groups, outputs of the group, K).
        lost = layer.per_group(layer.rows - effective)
        moved = layer.per_group(effective)
        error = (lost @ self.mean[..., None]) - (moved @ self.error[..., None])
        return np.asarray(error.ravel())


class ColumnSums:
    """Sums over the columns of one layer, and of those that multiply the same.

    Args:
        layer: one of the layers.
        partition: of the columns.
    """

    def __init__(self, layer: Layer, partition: Partition) -> None:
        self._layer, self._partition = layer, partition
        fewest = FEWEST_POSITIONS if layer.groups == 1 else FEWEST_IN_GROUPS
        self._wanted = int(np.clip(POSITIONS_A_COLUMN * partition.width, fewest, MOST_POSITIONS))
        self._rate = self._wanted / FIRST_SAMPLES
        self._since = 0
        shape = (layer.groups, partition.columns)
        self._weight, self._squared_weight = 0.0, 0.0
        self._sum = np.zeros(shape)
        self._inside = np.zeros(1)
        self._origin: np.ndarray | None = None
        self._square = np.zeros((0, 0, 0), dtype=np.float32)
        self._waiting: list[np.ndarray] = []

    def add(self, values: np.ndarray, samples: int, number: int) -> None:
        """Take columns from one batch of the layer's input."""
        # At 65,536 columns and 256 positions a sample: one sample at a time, 128 of its positions.
        room = COLUMN_BYTES // (4 * self._sum.size)
        together = int(max(room / self._rate, 1))
        if samples > together and len(values) % samples == 0:
            share = len(values) // samples
            for start in range(0, samples, together):
                part = values[start * share : (start + together) * share]
                self._add_part(part, min(together, samples - start), room, number + start)
        else:
            self._add_part(values, samples, room, number)

    def _add_part(self, values: np.ndarray, samples: int, room: int, number: int) -> None:
        """Take columns from some samples, at most `room` of them."""
        most = max(min(round(self._rate * samples), room), 1)
        columns, inside = extract_columns(self._layer, values, most, number)
        count = columns.shape[1]
        if not count:
            # The tensor is empty on these samples and has no mean to use as the origin.
            return
        total = count_positions(self._layer, values.shape)
        # Each position stands for all those between it and the next.
        weight = total / count
        self._weight += weight * count
        self._squared_weight += weight * weight * count
        self._sum += weight * columns.sum(axis=1, dtype=np.float64)
        self._inside = self._inside + weight * inside
        if self._partition.width:
            if self._origin is None:
                # With the origin near the mean, squares lose few digits even if the mean is much
                # larger than the spread.
                self._origin = columns.mean(axis=1, dtype=np.float64).astype(np.float32)
            columns = columns - self._origin[:, None]
            columns *= np.float32(np.sqrt(weight))
            self._waiting.append(self._partition.split(columns))
            self._add_squares()
        self._since += count
        if 2 * self._since >= self._wanted and self._rate > 1:
            self._since, self._rate = 0, min(self._rate, count / samples) / 2

    def _add_squares(self, always: bool = False) -> None:
        """Add the second moments of waiting columns if there are many, or `always`."""
        count = sum(columns.shape[1] for columns in self._waiting)
        size = sum(columns.nbytes for columns in self._waiting)
        # Adding to large second moments takes as long as multiplying a hundred columns.
        room = max(WAITING_BYTES, self._partition.bytes // 2)
        if not count or not (always or count >= TOGETHER or size >= room):
            return
        columns = np.concatenate(self._waiting, axis=1)
        self._waiting = []
        square = columns.transpose(0, 2, 1) @ columns
        if len(self._square):
            self._square += square
        else:
            self._square = square

    def moments(self, errors: np.ndarray | None) -> Moments:
        """Return the moments, and forget the sums.

        Args:
            errors: (channels,) E[q - x] within the input; None if it stays float.
        """
        self._add_squares(always=True)
        mean = self._sum / self._weight
        error = np.zeros_like(mean)
        if errors is not None:
            # Zero is represented exactly, so the zeros of a padded border have no error.
            share = self._inside / self._weight
            by_group = errors.reshape(self._layer.groups, 1, -1)
            error = (share[:, None] * by_group).reshape(mean.shape)
        variance, self._square = self._square, np.zeros((0, 0, 0), dtype=np.float32)
        if self._origin is not None:
            variance /= np.float32(self._weight)
            offset = self._partition.split((mean - self._origin)[:, None])[:, 0]
            offset = offset.astype(np.float32)
            variance -= offset[:, :, None] * offset[:, None, :]
        positions = self._weight**2 / self._squared_weight
        return Moments(mean, error, variance, self._partition, positions)


class ChannelRows:
    """Values of all channels of one tensor, at some positions of all samples.

    They give the mean error that the quantization of the tensor makes in each channel, once it is
    chosen.

    Args:
        most: number of positions that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rate = float(most)
        self._rows: list[np.ndarray] = []
        self._count = 0

    def add(self, values: np.ndarray, spatial: bool, samples: int, number: int) -> None:
        """Take positions from one batch, with channels at axis 1 if `spatial`, else at the end."""
        # At a rate of 0.25 for each sample, every fourth batch of one sample gives a position.
        expected = self._rate * samples
        if expected < 1 and number % round(1 / expected):
            return
        rows = values
        if spatial:
            rows = values.reshape(*values.shape[:2], -1).transpose(0, 2, 1)
            positions = spread(
                np.arange(rows.shape[0] * rows.shape[1]), max(int(expected), 1), number
            )
            rows = rows[positions // rows.shape[1], positions % rows.shape[1]]
        else:
            rows = spread(values.reshape(-1, values.shape[-1]), max(int(expected), 1), number)
        self._rows.append(np.array(rows))
        self._count += len(rows)
        if self._count > 2 * self._most:
            # Half of the rows at half of the rate: all samples keep the same share.
            remaining = np.concatenate(self._rows)[::2].copy()
            self._rows, self._count = [remaining], len(remaining)
            self._rate = min(self._rate, len(rows) / samples) / 2

    def mean_error(self, quantization: Affine) -> np.ndarray:
        """Return (channels,) E[q - x]."""
        rows = np.concatenate(self._rows)
        return np.asarray((quantization.fake(rows) - rows).mean(axis=0, dtype=np.float64))
