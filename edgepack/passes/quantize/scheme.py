"""Scales and zero points of every scheme.

"fbgemm" and "qnnpack" follow PyTorch: the formulas are those of
`torch.ao.quantization.observer.UniformQuantizationObserverBase`. Activations are u8, affine, per
tensor, with a range forced to hold zero; weights are s8, symmetric, per output channel.

"fbgemm" uses all of s8 for the weights, with 127.5 steps on either side. "qnnpack" takes -127 to
127, with 127 steps, as `default_per_channel_symmetric_qnnpack_qconfig` does. The older
`get_default_qconfig("qnnpack")` has one scale for all channels of a layer, which costs most where
they differ in magnitude, in depthwise convolutions (Krishnamoorthi, "Quantizing deep convolutional
networks", 2018), and spares onnxruntime nothing; its u8 activations are those of fbgemm. Two
features of the per-channel one are omitted: it stores activations as s8, which are the same values
with a zero point lower by 128, and it allows no scale below 2**-12, which XNNPACK needs and
onnxruntime does not, and which would leave channels of small weights few steps. PyTorch's bound of
2**-23 does not apply to either scheme here: a network of small numbers would become zeros.

"tensorrt" is symmetric throughout, since TensorRT takes no zero point but 0: activations are s8
per tensor, weights s8 per output channel, both with 127 steps on either side of zero (TensorRT
Developer Guide, "Working with Quantized Types": s = max|x| / 127, x_q = clip(round(x / s), -128,
127), ties to even). PyTorch's symmetric observers give the same with quant_min = -127. Biases
stay float: the parser refuses a dequantized int32. Scales and biases are float16 values, scales
rounded up, so that the graph computes the same when its float part becomes float16; the integers
lose far more than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 255
# Scheme -> steps on either side of a weight's zero, and the lowest integer.
WEIGHTS = {"fbgemm": (127.5, -128), "qnnpack": (127.0, -127), "tensorrt": (127.0, -127)}
# Schemes with s8 activations around a zero point of 0, with the steps on either side.
SYMMETRIC = {"tensorrt": 127}
# Smallest scale: a bias has the product of two, which has to be a normal float32.
LEAST_SCALE = 2.0**-60
INT32_ROOM = float(2**30)


@dataclass(frozen=True)
class Affine:
    """Quantization of an activation: real = (stored - zero_point) * scale.

    Attributes:
        scale: a float32 value.
        zero_point: the integer that represents 0.
        lowest: the smallest integer: 0 for u8, -128 for s8.
    """

    scale: float
    zero_point: int
    lowest: int = 0

    @property
    def low(self) -> float:
        """Smallest value that can be stored."""
        return (self.lowest - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """Largest value that can be stored."""
        return (self.lowest + LEVELS - self.zero_point) * self.scale

    @property
    def stored_zero(self) -> np.ndarray:
        """Zero point as stored: a scalar of the integers' type."""
        if self.lowest:
            return np.array(self.zero_point, dtype=np.int8)
        return np.array(self.zero_point, dtype=np.uint8)

    def fake(self, values: np.ndarray) -> np.ndarray:
        """Quantize and dequantize values.

        Example: with scale 0.1 and zero point 0, u8 gives 0.34 -> 3 -> 0.3 and -1 -> 0 -> 0.
        """
        lowest = self.lowest - self.zero_point
        stored = np.rint(values * np.float32(1.0 / self.scale))
        np.clip(stored, lowest, lowest + LEVELS, out=stored)
        return np.asarray(stored * np.float32(self.scale), dtype=values.dtype)


def fit_affine(low: float, high: float) -> Affine:
    """Return the u8 quantization that holds [low, high], with zero exactly.

    Example: [-1, 4] gives a scale of 5 / 255 and a zero point of 51.

    A range that is zero alone (a constant zero activation) gets scale 1.
    """
    bottom = np.minimum(np.float32(low), np.float32(0))
    top = np.maximum(np.float32(high), np.float32(0))
    if top == bottom:
        return Affine(1.0, 0)
    scale = np.maximum((top - bottom) / np.float32(LEVELS), np.float32(LEAST_SCALE))
    zero_point = int(np.clip(-np.rint(bottom / scale), 0, LEVELS))
    return Affine(float(scale), zero_point)


def fit_symmetric(magnitude: float, steps: int = SYMMETRIC["tensorrt"]) -> Affine:
    """Return the s8 quantization with a zero point of 0 that holds [-magnitude, magnitude].

    The scale is rounded up to a float16. A magnitude of 0 gets scale 1.
    """
    if magnitude == 0:
        return Affine(1.0, 0, -128)
    # Rounding the scale down would clip the largest value.
    scale = np.float32(magnitude) / np.float32(steps)
    return Affine(float(round_up_to_half(np.asarray(scale, dtype=np.float64))), 0, -128)


def round_to_half(values: np.ndarray) -> np.ndarray:
    """Round every value to the nearest float16; values above 65,504 are unchanged."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float16).astype(np.float64)
    return np.where(np.isfinite(near), near, values)


def round_up_to_half(values: np.ndarray) -> np.ndarray:
    """Return the smallest positive float16 not below each value, as float64.

    Values above 65,504, the largest float16, are unchanged.
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float16)
        up = np.nextafter(near, np.float16(np.inf))
    above = np.where(near < values, up, near).astype(np.float64)
    least = float(np.nextafter(np.float16(0), np.float16(1)))
    return np.where(np.isfinite(above), np.maximum(above, least), values)


def fit_row_scales(rows: np.ndarray, steps: float = 127.5) -> np.ndarray:
    """Return the s8 scale of every row of a weight matrix: largest magnitude over `steps`.

    Args:
        rows: (outputs, inputs).
        steps: of WEIGHTS; 63.5 for half of s8.

    Returns:
        (outputs,), float64, each a float32 value.
    """
    largest = np.abs(rows).max(axis=1).astype(np.float32)
    scale = np.maximum(largest / np.float32(steps), np.float32(LEAST_SCALE))
    return np.asarray(scale, dtype=np.float64)


def make_storable(
    scale: np.ndarray, bias: np.ndarray, input_scale: float, scheme: str
) -> np.ndarray:
    """Round weight scales up to values that the scheme can store."""
    if scheme in SYMMETRIC:
        return round_up_to_half(scale)
    return make_room_for_bias(scale, bias, input_scale)


def make_room_for_bias(scale: np.ndarray, bias: np.ndarray, input_scale: float) -> np.ndarray:
    """Raise weight scales so that the bias fits int32.

    A bias is stored with scale `input_scale * weight scale`. A channel of (nearly) zero
    weights has a scale so small that its bias would overflow.
    """
    # Limiting biases to 2**30 leaves one bit for the sums that they are added to.
    needed = np.abs(bias) / (input_scale * INT32_ROOM)
    return np.asarray(np.maximum(scale, needed).astype(np.float32), dtype=np.float64)
