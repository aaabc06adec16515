"""Fake quantization of activations in 8 bits. Importing this module needs torch."""

from __future__ import annotations

import torch
from torch import nn

from edgepack.passes.aware.fake import fake
from edgepack.passes.quantize.scheme import LEAST_SCALE, LEVELS, SYMMETRIC

# Weight of the latest batch in the moving average of the extremes.
MOMENTUM = 0.01


class Static(nn.Module):  # type: ignore[misc]
    """Quantizes to u8 or s8 with one scale per tensor and a range that follows the activations.

    The range is the calibrator's at first. A moving average follows the extremes of the batches,
    and the range remains the same share of it: a calibrator that clipped [0, 10] to [0, 8] gives
    the share 0.8, and the range [0, 9.6] once the average has moved to 12.

    Args:
        low, high: the calibrator's range.
        extremes: mean of the smallest and of the largest values of the calibrator's batches.
        scheme: of `quantize`.
    """

    def __init__(self, low: float, high: float, extremes: tuple[float, float], scheme: str) -> None:
        super().__init__()
        self.steps = SYMMETRIC.get(scheme)
        shares = [_compute_share(low, extremes[0]), _compute_share(high, extremes[1])]
        self.register_buffer("share", torch.tensor(shares, dtype=torch.float32))
        # Checkpoints of interrupted builds store the buffers under these names.
        self.register_buffer("seen", torch.tensor(extremes, dtype=torch.float32))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize; in training mode, update the range first."""
        if self.training:
            with torch.no_grad():
                extremes = torch.stack(torch.aminmax(values.detach()))
                self.seen.lerp_(extremes, MOMENTUM)
        scale, zero_point = self.affine()
        lowest = -128 if self.steps else 0
        return fake(values, scale, zero_point, lowest, lowest + LEVELS)

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scalar scale and zero point: `scheme.affine`, or `signed` without its float16."""
        low, high = (self.share * self.seen).unbind()
        if self.steps:
            scale = torch.maximum(low.abs(), high.abs()) / self.steps
            return torch.where(scale > 0, scale, 1.0), torch.zeros_like(scale)
        return _compute_affine(low, high)


def _compute_share(end: float, extreme: float) -> float:
    """Return the ratio of one end of the range to the extreme; 0 if their signs differ."""
    if end * extreme <= 0:
        return 0.0
    return end / extreme


class Dynamic(nn.Module):  # type: ignore[misc]
    """Quantizes to u8 with the range of each sample, as on a device that runs one at a time."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize."""
        with torch.no_grad():
            flat = values.detach().reshape(len(values), -1)
            low, high = torch.aminmax(flat, dim=1)
            shape = [-1] + [1] * (values.ndim - 1)
            # [batch] -> [batch, 1, ...], to broadcast against the values.
            scale, zero_point = _compute_affine(low, high)
        return fake(values, scale.reshape(shape), zero_point.reshape(shape), 0, LEVELS)


def _compute_affine(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point of u8 for ranges, as `scheme.affine` does.

    The range [-1, 4] has the scale 5 / 255 and the zero point 51.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / LEVELS).clamp(min=LEAST_SCALE)
    scale = torch.where(high > low, scale, 1.0)
    return scale, (-torch.round(low / scale)).clamp(0, LEVELS)
