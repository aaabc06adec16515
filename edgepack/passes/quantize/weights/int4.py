"""Quantize weights to four bits in blocks of a row, each with its own scale and zero point.

They are stored as onnxruntime's `com.microsoft.MatMulNBits` reads them: real = (stored - zero
point) * scale, stored and zero point from 0 to 15, two in a byte, the first in the lower half.
A zero point costs half a byte per block and gains 0.4 dB of the weights' SNR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.passes.quantize.calibration.moments import Moments
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.weights.rounding import factorize

HIGHEST = 15
# Overhead of a block in bytes: a float32 scale and half a byte of zero point.
BLOCK_OVERHEAD = 4.5
# Candidates for the share of a block's range: a smaller one rounds finer and clips more.
SHRINKS = np.linspace(1.0, 0.85, 7)


@dataclass(frozen=True)
class Blocks:
    """A matrix in blocks of four-bit integers.

    Attributes:
        integers: (outputs, blocks, block) whole numbers from 0 to 15; those past K represent 0.
        scale: (outputs, blocks) float32 values.
        zero_point: (outputs, blocks) whole numbers from 0 to 15.
    """

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    def rows(self, width: int) -> np.ndarray:
        """Return (outputs, width) the real weights that the integers represent."""
        real = (self.integers - self.zero_point[..., None]) * self.scale[..., None]
        return np.asarray(real.reshape(len(real), -1)[:, :width])

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return integers, scales and zero points in the layout of the operator.

        Returns:
            (outputs, blocks, block / 2) uint8; (outputs * blocks,) float32;
            (outputs * ceil(blocks / 2),) uint8.
        """
        zeros = np.pad(self.zero_point, [(0, 0), (0, self.zero_point.shape[1] % 2)])
        scale = self.scale.astype(np.float32).ravel()
        return _nibbles(self.integers), scale, _nibbles(zeros).ravel()


def saves_in_blocks(width: int, block: int) -> bool:
    """Return True if a row of `width` weights is smaller in four-bit blocks than in eight bits."""
    # K = 768 in blocks of 32: 24 blocks of 16 + 4.5 bytes are 492 bytes, against 768 in eight bits.
    return -(-width // block) * (block / 2 + BLOCK_OVERHEAD) < width


def quantize_in_blocks(
    layer: Layer, block: int, moments: Moments | None, options: QuantizeOptions
) -> tuple[Blocks, np.ndarray]:
    """Return one layer's weights in four bits, and its bias: (outputs,) float64.

    Args:
        layer: with its real weights.
        block: weights that share a scale.
        moments: of its input; None for rounding to the nearest without bias correction.
        options: rounding and bias correction.
    """
    has_bias = layer.op == "Gemm" or layer.added is not None
    if moments is None:
        return quantize_blocks(layer.rows, block, None), layer.bias
    # Shared weights need one rounding for all readers. With bias correction only the covariance
    # matters, as the mean error goes to the bias; a MatMul without an Add has no bias to correct.
    losses: list[np.ndarray | None] = [None]
    if options.rounding == "gptq" and moments.compensated and not layer.shared:
        corrected = options.bias_correction is True and has_bias
        losses = list(moments.loss(corrected, 0.0))
    blocks = _quantize_parts(layer.rows, block, losses)
    if not (options.bias_correction and has_bias):
        return blocks, layer.bias
    used = blocks.rows(layer.rows.shape[1])
    return blocks, layer.bias + moments.mean_error(layer, used)


def _quantize_parts(rows: np.ndarray, block: int, losses: Sequence[np.ndarray | None]) -> Blocks:
    """Quantize a matrix whose second moments are known in parts of its columns."""
    parts = []
    start = 0
    for loss in losses:
        width = rows.shape[1] if loss is None else len(loss)
        # Blocks may not span two parts; where they would, every weight goes to the nearest step.
        if start + width < rows.shape[1] and width % block:
            return quantize_blocks(rows, block, None)
        columns = rows[:, start : start + width]
        padding = width - columns.shape[1]
        parts.append(quantize_blocks(np.pad(columns, [(0, 0), (0, padding)]), block, loss))
        start += width
    count = -(-rows.shape[1] // block)
    return Blocks(
        np.concatenate([part.integers for part in parts], axis=1)[:, :count],
        np.concatenate([part.scale for part in parts], axis=1)[:, :count],
        np.concatenate([part.zero_point for part in parts], axis=1)[:, :count],
    )


def quantize_blocks(rows: np.ndarray, block: int, loss: np.ndarray | None) -> Blocks:
    """Quantize a matrix to four bits.

    Without `loss` every weight goes to the nearest step of its block. With it the rounding is
    that of GPTQ (`rounding.round_compensated`), and each block's scale fits its weights after they
    have compensated the errors of earlier blocks.

    Args:
        rows: (outputs, K) float64.
        block: weights that share a scale.
        loss: (K, K) second moments or covariance of the input, or None.
    """
    # K = 100 in blocks of 32 gives 4 blocks, the last with 4 weights and 28 zeros.
    outputs, width = rows.shape
    count = -(-width // block)
    remaining = np.array(rows, dtype=np.float64)
    factor = None if loss is None else factorize(loss[None]).weights[0]
    errors = np.zeros_like(remaining)
    importance = np.ones(width) if loss is None else np.diag(loss)
    integers = np.zeros((outputs, count, block))
    scale, zero_point = np.ones((outputs, count)), np.zeros((outputs, count))
    for number in range(count):
        start, stop = number * block, min((number + 1) * block, width)
        step, zero = _grid(remaining[:, start:stop], importance[start:stop])
        scale[:, number], zero_point[:, number] = step, zero
        integers[:, number] = zero[:, None]
        for k in range(start, stop):
            stored = np.clip(np.rint(remaining[:, k] / step) + zero, 0, HIGHEST)
            integers[:, number, k - start] = stored
            if factor is not None:
                errors[:, k] = (stored - zero) * step - rows[:, k]
                if k + 1 < stop:
                    earlier = errors[:, start : k + 1] @ factor[start : k + 1, k + 1]
                    remaining[:, k + 1] -= earlier
        if factor is not None:
            remaining[:, stop:] -= errors[:, start:stop] @ factor[start:stop, stop:]
    return Blocks(integers, scale, zero_point)


def _grid(weights: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (outputs,) the scale and zero point of a block with the least rounding loss.

    Args:
        weights: (outputs, block).
        importance: (block,) of an error in each column.
    """
    low = np.minimum(weights.min(axis=1), 0.0)
    high = np.maximum(weights.max(axis=1), 0.0)
    best_scale, best_zero = np.ones(len(weights)), np.zeros(len(weights))
    least = np.full(len(weights), np.inf)
    for shrink in SHRINKS:
        scale = ((high - low) * shrink / HIGHEST).astype(np.float32).astype(np.float64)
        # A block of zeros, or of values so small that the scale underflows, gets scale 1.
        scale = np.where(scale > 0, scale, 1.0)
        zero = np.clip(np.rint(-low * shrink / scale), 0, HIGHEST)
        stored = np.clip(np.rint(weights / scale[:, None]) + zero[:, None], 0, HIGHEST)
        error = (stored - zero[:, None]) * scale[:, None] - weights
        cost = np.square(error) @ importance
        better = cost < least
        least = np.where(better, cost, least)
        best_scale = np.where(better, scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
    return best_scale, best_zero


def _nibbles(values: np.ndarray) -> np.ndarray:
    """Pack pairs along the last axis into bytes, the first in the lower half: (3, 5) -> 0x53."""
    nibbles = values.astype(np.uint8)
    return np.ascontiguousarray(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4))
