"""The 8-bit activations of a network that trains. Only importable where torch is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgepack.chain.aware.fake import fake
from edgepack.chain.quantize.scheme import LEAST_SCALE, LEVELS, SYMMETRIC

# Weight of the newest batch in the moving average of the extremes.
MOMENTUM = 0.01


class Static(nn.Module):  # type: ignore[misc]
    """u8 or s8 activations, one scale for the tensor, with a range that follows what it sees.

    The range is the calibrator's at first. The extremes of every batch enter a moving average,
    and the range keeps its share of them.

    Args:
        low, high: the calibrator's range.
        seen: the mean extremes of batches when that was chosen: smallest and largest value.
        scheme: of `quantize`.
    """

    def __init__(self, low: float, high: float, seen: tuple[float, float], scheme: str) -> None:
        super().__init__()
        self.steps = SYMMETRIC.get(scheme)
        shares = [_share(low, seen[0]), _share(high, seen[1])]
        self.register_buffer("share", torch.tensor(shares, dtype=torch.float32))
        self.register_buffer("seen", torch.tensor(seen, dtype=torch.float32))

    def forward(self, values: Any) -> Any:
        """Quantized and dequantized; while training, the range moves."""
        if self.training:
            with torch.no_grad():
                extremes = torch.stack(torch.aminmax(values.detach()))
                self.seen.lerp_(extremes, MOMENTUM)
        scale, zero_point = self.affine()
        lowest = -128 if self.steps else 0
        return fake(values, scale, zero_point, lowest, lowest + LEVELS)

    def affine(self) -> tuple[Any, Any]:
        """Scale and zero point, scalars: `scheme.affine`, or `signed` without its float16."""
        low, high = (self.share * self.seen).unbind()
        if self.steps:
            scale = torch.maximum(low.abs(), high.abs()) / self.steps
            return torch.where(scale > 0, scale, 1.0), torch.zeros_like(scale)
        return _affine(low, high)


def _share(end: float, seen: float) -> float:
    """How much of an extreme the range keeps; an extreme on the other side of zero counts not."""
    return end / seen if end * seen > 0 else 0.0


class Dynamic(nn.Module):  # type: ignore[misc]
    """u8 activations whose range is that of each sample, as one that runs alone has it."""

    def forward(self, values: Any) -> Any:
        """Quantized and dequantized."""
        with torch.no_grad():
            flat = values.detach().reshape(len(values), -1)
            low, high = torch.aminmax(flat, dim=1)
            shape = [-1] + [1] * (values.ndim - 1)
            scale, zero_point = (found.reshape(shape) for found in _affine(low, high))
        return fake(values, scale, zero_point, 0, LEVELS)


def _affine(low: Any, high: Any) -> tuple[Any, Any]:
    """Scale and zero point of u8 for ranges: `scheme.affine`."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / LEVELS).clamp(min=LEAST_SCALE)
    scale = torch.where(high > low, scale, 1.0)
    return scale, (-torch.round(low / scale)).clamp(0, LEVELS)
