"""Quantize and dequantize, with a gradient. Only importable where torch is."""

from __future__ import annotations

from typing import Any

import torch

from edgepack.chain.quantize.scheme import LEAST_SCALE
from edgepack.chain.quantize.unranged.blocks import HIGHEST, SHRINKS


class _Fake(torch.autograd.Function):  # type: ignore[misc]
    """QuantizeLinear and DequantizeLinear of ONNX; the gradient goes straight through inside the
    range and stops where a value was clipped (Bengio et al., "Estimating or propagating gradients
    through stochastic neurons", 2013)."""

    @staticmethod
    def forward(
        ctx: Any, values: Any, scale: Any, zero_point: Any, lowest: int, highest: int
    ) -> Any:
        steps = torch.round(values / scale) + zero_point
        ctx.save_for_backward((steps >= lowest) & (steps <= highest))
        return (steps.clamp(lowest, highest) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def fake(values: Any, scale: Any, zero_point: Any, lowest: int, highest: int) -> Any:
    """Quantize and dequantize: (clip(round(x / s) + z, lowest, highest) - z) s, ties to even.

    Args:
        values: float32.
        scale: float32, a scalar or one that broadcasts.
        zero_point: likewise, a whole number.
        lowest, highest: the smallest and the largest integer.
    """
    return _Fake.apply(values, scale, zero_point, lowest, highest)


def fake_weights(weight: Any, steps: float, lowest: int) -> Any:
    """s8 weights, symmetric, a scale for every output channel (axis 0): `scheme.symmetric`.

    Args:
        weight: float32, of a convolution or a linear layer.
        steps: on either side of zero.
        lowest: integer.
    """
    largest = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = (largest / steps).clamp(min=LEAST_SCALE)
    # The largest weight of a row lies halfway between two steps: float64, as `quantize` divides,
    # or it goes one way here and the other way there.
    exact = fake(_exact(weight), _exact(scale), torch.zeros_like(scale), lowest, 127)
    return exact.to(weight.dtype)


def fake_blocks(weight: Any, block: int) -> Any:
    """Four-bit weights of a linear layer, a scale and a zero point for every `block` of a row.

    The grid of each block is the one at which rounding loses least, as `unranged.blocks` chooses it
    where it rounds to the nearest.

    Args:
        weight: (outputs, inputs) float32.
        block: weights that share a scale.
    """
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(_exact(weight), (0, -inputs % block))
    padded = padded.reshape(outputs, -1, block)
    with torch.no_grad():
        scale, zero_point = _grid(padded.detach())
    made = fake(padded, scale, zero_point, 0, HIGHEST)
    return made.reshape(outputs, -1)[:, :inputs].to(weight.dtype)


def _grid(blocks: Any) -> tuple[Any, Any]:
    """(outputs, blocks, 1) the scale and zero point of each block."""
    low = blocks.amin(-1, keepdim=True).clamp(max=0)
    high = blocks.amax(-1, keepdim=True).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINKS.tolist():
        scale = _exact(((high - low) * shrink / HIGHEST).float())
        scale = torch.where(scale > 0, scale, 1.0)
        zero = torch.round(-low * shrink / scale).clamp(0, HIGHEST)
        stored = (torch.round(blocks / scale) + zero).clamp(0, HIGHEST)
        cost = ((stored - zero) * scale - blocks).square().sum(-1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        scales = torch.where(better, scale, scales)
        zeros = torch.where(better, zero, zeros)
    return scales, zeros


def _exact(values: Any) -> Any:
    """In float64, where the device has that (Apple's has not)."""
    return values if values.device.type == "mps" else values.double()
