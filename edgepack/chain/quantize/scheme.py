"""Scales and zero points, by PyTorch's conventions.

The formulas are those of `torch.ao.quantization.observer.UniformQuantizationObserverBase`:
activations are u8, affine, per tensor, with a range forced to hold zero; weights are s8,
symmetric, per output channel.

"fbgemm" takes all of s8 for the weights, with 127.5 steps on either side. "qnnpack" takes -127 to
127, with 127 steps, as `default_per_channel_symmetric_qnnpack_qconfig` does. The older
`get_default_qconfig("qnnpack")` has one scale for all channels of a layer, which costs most where
they differ in size, in depthwise convolutions (Krishnamoorthi, "Quantizing deep convolutional
networks", 2018), and spares onnxruntime nothing; its u8 activations are those of fbgemm. Two
things of the per-channel one are left out: it stores activations as s8, which are the same values
with a zero point lower by 128, and it lets no scale be below 2**-12, which XNNPACK needs and
onnxruntime does not, and which would leave channels of small weights few steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 255
# Scheme to the steps on either side of a weight's zero, and the lowest integer.
WEIGHTS = {"fbgemm": (127.5, -128), "qnnpack": (127.0, -127)}
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
        steps: of WEIGHTS; 63.5 for half of s8.

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
