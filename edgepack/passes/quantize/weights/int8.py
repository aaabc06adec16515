"""Quantize the weights of one layer to s8: scale, range, rounding and bias correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.passes.quantize.calibration.moments import Moments
from edgepack.passes.quantize.calibration.partition import Partition
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
    factorize,
    find_largest_pairs,
    round_compensated,
    round_to_nearest,
)

# Candidates for the share of the full scale: a smaller scale rounds finer and clips more.
SHRINKS = (1.0, 0.9, 0.8)
# Weights times scales that are rounded at a time, which bounds the memory of a layer.
ROUNDED_TOGETHER = 2**21


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
    compensated = moments is not None and moments.compensated and options.rounding == "gptq"
    if moments is None or not compensated or layer.shared:
        # Readers of shared weights have to use the same integers, whatever their biases.
        bias = np.zeros_like(layer.bias) if layer.shared else layer.bias
        scale = _storable_scale(largest, bias, source, options.scheme)
        rows = round_to_nearest(layer.rows / scale[:, None], limited, lowest)
    else:
        noise = source.scale**2 / 12 if source is not None else 0.0
        loss = moments.loss(options.bias_correction is True, noise)
        shrinks = (1.0,) if options.range == "reduced" else SHRINKS
        candidates = []
        for shrink in shrinks:
            candidates.append(_storable_scale(largest * shrink, layer.bias, source, options.scheme))
        scale, rows = _search_scale(layer, candidates, loss, moments.partition, limited, lowest)
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
    candidates: Sequence[np.ndarray],
    loss: np.ndarray,
    partition: Partition,
    limited: bool,
    lowest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale of each channel with the least loss after rounding, and its integers.

    Args:
        layer: with its real weights.
        candidates: (outputs,) scales, of which every channel takes the best by itself.
        loss: (groups * parts, width, width), from `Moments.loss`.
        partition: of the columns.
        limited: whether pairs are limited.
        lowest: integer.
    """
    feedback = factorize(loss)
    count = len(candidates)
    # (groups, outputs of the group, candidates)
    scales = np.stack(candidates, axis=-1).reshape(layer.groups, -1, count)
    weights = layer.per_group(layer.rows)
    integers = np.empty(weights.shape, dtype=np.int8)
    best = np.empty(scales.shape[:2])
    chunk = max(1, ROUNDED_TOGETHER // (layer.groups * weights.shape[2] * count))
    for start in range(0, weights.shape[1], chunk):
        scale = scales[:, start : start + chunk]
        # A row stands once for each scale, so that one factorization serves them all.
        steps = weights[:, start : start + chunk, None] / scale[..., None]
        rows = partition.split(steps.reshape(layer.groups, -1, weights.shape[2]))
        rounded, lost = round_compensated(rows, feedback, limited, lowest)
        # Losses of the parts of a row add up.
        cost = lost.reshape(layer.groups, partition.parts, -1).sum(axis=1).reshape(scale.shape)
        choice = np.argmin(cost * np.square(scale), axis=-1)[..., None]
        best[:, start : start + chunk] = np.take_along_axis(scale, choice, axis=-1)[..., 0]
        joined = partition.join(rounded).reshape(*scale.shape, -1)
        selected = np.take_along_axis(joined, choice[..., None], axis=2)[:, :, 0]
        integers[:, start : start + chunk] = selected
    return best.ravel(), integers.reshape(layer.rows.shape)
