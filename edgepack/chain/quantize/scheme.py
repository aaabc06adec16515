"""Scales and zero points, by PyTorch's fbgemm convention.

The formulas are those of `torch.ao.quantization.observer.UniformQuantizationObserverBase`:
activations are u8, affine, per tensor, with a range forced to hold zero; weights are s8,
symmetric, per output channel, with 127.5 steps on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 255
EPSILON = float(np.finfo(np.float32).eps)
INT32_ROOM = float(2**30)


@dataclass(frozen=True)
class Affine:
    """u8 quantization of an activation: real = (stored - zero_point) * scale."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest value that can be stored."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The largest value that can be stored."""
        return (LEVELS - self.zero_point) * self.scale

    def fake(self, values: np.ndarray) -> np.ndarray:
        """Quantize and dequantize: what the integer network sees of `values`."""
        stored = np.rint(values * np.float32(1.0 / self.scale))
        np.clip(stored, -self.zero_point, LEVELS - self.zero_point, out=stored)
        return np.asarray(stored * np.float32(self.scale), dtype=values.dtype)


def affine(low: float, high: float) -> Affine:
    """The u8 quantization that holds [low, high] and zero exactly.

    A range that is zero alone (a constant zero activation) gets scale 1.
    """
    bottom = np.minimum(np.float32(low), np.float32(0))
    top = np.maximum(np.float32(high), np.float32(0))
    if top == bottom:
        return Affine(1.0, 0)
    scale = np.maximum((top - bottom) / np.float32(LEVELS), np.float32(EPSILON))
    zero_point = int(np.clip(-np.rint(bottom / scale), 0, LEVELS))
    return Affine(float(scale), zero_point)


def symmetric(rows: np.ndarray, steps: float = 127.5) -> np.ndarray:
    """The s8 scale of every row of a weight matrix: largest magnitude over `steps`.

    Args:
        rows: (outputs, inputs).
        steps: 127.5 for all of s8, 63.5 for half of it.

    Returns:
        (outputs,), float64, each of a float32's value.
    """
    largest = np.abs(rows).max(axis=1).astype(np.float32)
    scale = np.maximum(largest / np.float32(steps), np.float32(EPSILON))
    return np.asarray(scale, dtype=np.float64)


def room_for_bias(scale: np.ndarray, bias: np.ndarray, input_scale: float) -> np.ndarray:
    """Weight scales raised where the bias would not fit int32 beside them.

    A bias is stored with scale `input_scale * weight scale`; a channel of (nearly) zero
    weights has a scale so small that its bias overflows.
    """
    needed = np.abs(bias) / (input_scale * INT32_ROOM)
    return np.asarray(np.maximum(scale, needed).astype(np.float32), dtype=np.float64)
