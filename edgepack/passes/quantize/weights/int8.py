"""Quantize the weights of one layer to s8: scale, range, rounding and bias correction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepack.passes.quantize.calibration.moments import Moments
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import (
    SYMMETRIC,
    WEIGHTS,
    Affine,
    fit_row_scales,
    make_storable,
)
from edgepack.passes.quantize.weights.rounding import (
    PAIR_STEPS,
    factor_inverse,
    find_largest_pairs,
    round_compensated,
    round_to_nearest,
)

# Candidates for the share of the full scale: a smaller scale rounds finer and clips more.
SHRINKS = (1.0, 0.9, 0.8)


@dataclass(frozen=True)
class Quantized:
    """Integers of one layer.

    Attributes:
        rows: (outputs, K) int8.
        scale: (outputs,) float32 values.
        bias: (outputs,) int32, in units of input scale times weight scale; None if it stays
            float.
        real_bias: (outputs,) the same as a real number.
        factor: (outputs,) by which the pair limit raised the scale of each channel; 1 if it did
            not.
    """

    rows: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    real_bias: np.ndarray
    factor: np.ndarray


def quantize_layer(
    layer: Layer, source: Affine | None, moments: Moments | None, options: QuantizeOptions
) -> Quantized:
    """Quantize one layer's weights and bias.

    Args:
        layer: with its real weights.
        source: quantization of its input; None if the input is float.
        moments: of its input; None for rounding to the nearest without bias correction.
        options: range, rounding and bias correction.
    """
    _, lowest = WEIGHTS[options.scheme]
    # At reduced range only compensated rounding can bring a pair near the limit.
    limited = options.range != "full" and layer.paired
    largest, factor = compute_full_scale(layer.rows, options, layer.paired)
    if moments is None or options.rounding == "nearest" or layer.shared:
        # Readers of shared weights have to use the same integers, whatever their biases.
        bias = np.zeros_like(layer.bias) if layer.shared else layer.bias
        scale = _storable_scale(largest, bias, source, options.scheme)
        rows = round_to_nearest(layer.rows / scale[:, None], limited, lowest)
    else:
        loss = moments.covariance if options.bias_correction else moments.second
        if source is not None:
            # Inputs that are constant on the samples still carry the noise of their rounding.
            loss = loss + np.eye(loss.shape[-1]) * source.scale**2 / 12
        shrinks = (1.0,) if options.range == "reduced" else SHRINKS
        scale, rows = _search_scale(layer, largest, loss, limited, source, options.scheme, shrinks)
    bias = layer.bias
    if moments is not None and options.bias_correction:
        bias = bias + moments.mean_error(layer, rows * scale[:, None])
    # int32 biases saturate rather than overflow; `make_storable` has made room for them.
    stored = None
    if source is not None and options.scheme not in SYMMETRIC:
        unit = np.float32(source.scale) * scale.astype(np.float32)
        stored = np.clip(np.rint(bias / unit), -(2**31), 2**31 - 1).astype(np.int32)
    return Quantized(rows.astype(np.int8), scale, stored, bias, factor)


@dataclass(frozen=True)
class Integers:
    """Weights that are not those of a linear layer as s8, rounded to the nearest.

    Attributes:
        rows: (scales, values of each) int8.
        scale: (scales,) float32.
        factor: (scales,) by which the pair limit raised each scale.
    """

    rows: np.ndarray
    scale: np.ndarray
    factor: np.ndarray


def round_rows(rows: np.ndarray, options: QuantizeOptions) -> Integers:
    """Round (scales, values of each) to the nearest steps; `options.range` limits the pairs."""
    _, lowest = WEIGHTS[options.scheme]
    largest, factor = compute_full_scale(rows, options)
    scale = largest.astype(np.float32)
    integers = round_to_nearest(rows / scale[:, None], options.range != "full", lowest)
    return Integers(integers.astype(np.int8), scale, factor)


def compute_full_scale(
    rows: np.ndarray, options: QuantizeOptions, paired: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return (outputs,) scales at which s8 holds every row, and (outputs,) pair factors.

    Example: a row with the pair (100, 60) at full scale gets a factor of 160 / 127.5.


    Args:
        rows: (outputs, K).
        options: scheme and range.
        paired: whether neighbouring columns are added in 16 bits without VNNI.
    """
    steps, _ = WEIGHTS[options.scheme]
    if options.range == "reduced":
        # Half the steps of s8 on either side, so that rounded pairs stay near the limit.
        steps = 63.5
    full = fit_row_scales(rows, steps)
    factor = np.ones_like(full)
    if options.range == "pair-safe" and paired:
        factor = np.maximum(1.0, find_largest_pairs(rows / full[:, None]) / PAIR_STEPS)
    return full * factor, factor


def _storable_scale(
    scale: np.ndarray, bias: np.ndarray, source: Affine | None, scheme: str
) -> np.ndarray:
    """Round scales to storable values; with a float input the bias does not limit them."""
    if source is None:
        return scale.astype(np.float32).astype(np.float64)
    return make_storable(scale, bias, source.scale, scheme)


def _search_scale(
    layer: Layer,
    largest: np.ndarray,
    loss: np.ndarray,
    limited: bool,
    source: Affine | None,
    scheme: str,
    shrinks: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale of each channel with the least loss after rounding, and its integers."""
    # Every channel takes the best of the shrinks, independently of the others.
    best_scale, best_rows = largest, np.zeros_like(layer.rows)
    least = np.full(len(largest), np.inf)
    factor = factor_inverse(loss)
    _, lowest = WEIGHTS[scheme]
    for shrink in shrinks:
        scale = _storable_scale(largest * shrink, layer.bias, source, scheme)
        steps = layer.per_group(layer.rows / scale[:, None])
        rows = round_compensated(steps, factor, limited, lowest).reshape(layer.rows.shape)
        error = layer.per_group(rows * scale[:, None] - layer.rows)
        cost = np.einsum("grk,grk->gr", error @ loss, error).ravel()
        better = cost < least
        least = np.where(better, cost, least)
        best_scale = np.where(better, scale, best_scale)
        best_rows[better] = rows[better]
    return best_scale, best_rows
