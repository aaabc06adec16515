"""Quantize and dequantize, with a gradient. Importing this module needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgepack.passes.quantize.scheme import LEAST_SCALE
from edgepack.passes.quantize.weights.int4 import HIGHEST, SHRINKS

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


class _Fake(torch.autograd.Function):  # type: ignore[misc]
    """QuantizeLinear and DequantizeLinear of ONNX with a straight-through gradient.

    The gradient is 1 inside the range and 0 for clipped values (Bengio et al., "Estimating or
    propagating gradients through stochastic neurons", 2013).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        values: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        lowest: int,
        highest: int,
    ) -> torch.Tensor:
        steps = torch.round(values / scale) + zero_point
        ctx.save_for_backward((steps >= lowest) & (steps <= highest))
        return (steps.clamp(lowest, highest) - zero_point) * scale

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # One gradient per argument of `forward`; all but the values are constants.
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


def fake(
    values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, lowest: int, highest: int
) -> torch.Tensor:
    """Quantize and dequantize: (clip(round(x / s) + z, lowest, highest) - z) s, ties to even.

    With s = 0.5, z = 0 and integers from -128 to 127, 0.8 becomes 1.0 and 100 becomes 63.5.

    Args:
        values: float32.
        scale: float32, a scalar or one that broadcasts.
        zero_point: likewise, a whole number.
        lowest, highest: the smallest and the largest integer.
    """
    return _Fake.apply(values, scale, zero_point, lowest, highest)


def fake_weights(weight: torch.Tensor, steps: float, lowest: int) -> torch.Tensor:
    """Round weights to symmetric s8 with a scale per output channel, as `scheme.symmetric` does.

    Args:
        weight: float32, of a convolution or a linear layer; output channels are axis 0.
        steps: number of steps on either side of zero.
        lowest: the smallest integer.
    """
    largest = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = (largest / steps).clamp(min=LEAST_SCALE)
    # With 63.5 steps the largest weight of a row lies halfway between two integers. In float64, in
    # which `quantize` divides, it rounds to the same one here as there.
    exact = fake(_to_exact(weight), _to_exact(scale), torch.zeros_like(scale), lowest, 127)
    return exact.to(weight.dtype)


def fake_blocks(weight: torch.Tensor, block: int) -> torch.Tensor:
    """Round the weights of a linear layer to four bits, a scale and zero point per block of a row.

    The grid of each block minimizes the rounding error, as in `weights.int4` for rounding to the
    nearest.

    Args:
        weight: (outputs, inputs) float32.
        block: number of weights that share a scale.
    """
    # Rows are padded to whole blocks: 70 inputs in blocks of 32 become 96, as 3 blocks.
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(_to_exact(weight), (0, -inputs % block))
    padded = padded.reshape(outputs, -1, block)
    with torch.no_grad():
        scale, zero_point = _fit_grid(padded.detach())
    rounded = fake(padded, scale, zero_point, 0, HIGHEST)
    return rounded.reshape(outputs, -1)[:, :inputs].to(weight.dtype)


def _fit_grid(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and zero point of each block, (outputs, blocks, 1).

    Tries grids over shrinking shares of each block's range: a smaller step rounds most weights more
    finely, and clips the largest. The block [0, ..., 3] has steps of 0.2; at 0.85 of its range
    they are 0.17, and 3 becomes 2.55.
    """
    low = blocks.amin(-1, keepdim=True).clamp(max=0)
    high = blocks.amax(-1, keepdim=True).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINKS.tolist():
        # `quantize` stores scales as float32; rounding them here keeps both grids identical.
        scale = _to_exact(((high - low) * shrink / HIGHEST).float())
        scale = torch.where(scale > 0, scale, 1.0)
        zero = torch.round(-low * shrink / scale).clamp(0, HIGHEST)
        stored = (torch.round(blocks / scale) + zero).clamp(0, HIGHEST)
        cost = ((stored - zero) * scale - blocks).square().sum(-1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        scales = torch.where(better, scale, scales)
        zeros = torch.where(better, zero, zeros)
    return scales, zeros


def _to_exact(values: torch.Tensor) -> torch.Tensor:
    """Convert to float64 unless the device is Apple's, without support for it."""
    if values.device.type == "mps":
        return values
    return values.double()
