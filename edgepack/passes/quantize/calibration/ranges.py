"""Compute the quantization of an activation from its range or histogram.

A symmetric scheme has one free end, so its calibrators use magnitudes, as TensorRT's own do. The
entropy calibrator is then exactly that of Migacz, "8-bit inference with TensorRT" (2017).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from edgepack.passes.quantize.calibration import calibrators
from edgepack.passes.quantize.calibration.histograms import Histogram, Range
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import LEVELS, SYMMETRIC, Affine, affine, signed


def of_range(observed: Range, scheme: str) -> Affine:
    """Return the quantization that holds the observed range."""
    if scheme in SYMMETRIC:
        return signed(max(abs(observed.low), abs(observed.high)), SYMMETRIC[scheme])
    return affine(observed.low, observed.high)


def of_histogram(counts: Histogram, options: QuantizeOptions) -> Affine:
    """Return the quantization that the calibrator chooses."""
    steps = SYMMETRIC.get(options.scheme)
    levels = steps or LEVELS
    choose: dict[str, Callable[[Histogram], tuple[float, float]]] = {
        "minmax": calibrators.minmax,
        "percentile": partial(calibrators.percentile, percent=options.percentile),
        "entropy": partial(calibrators.entropy, levels=levels),
        "mse": partial(calibrators.mse, levels=levels),
    }
    if steps is None:
        return affine(*choose[options.calibrator](counts))
    if options.calibrator == "percentile":
        # Magnitudes have one tail, which takes the share of both: 99.99 % leaves 0.01 % outside, as
        # 99.98 % with two equal tails leaves 0.01 % beyond the upper end.
        choose["percentile"] = partial(calibrators.percentile, percent=2 * options.percentile - 100)
    return signed(choose[options.calibrator](folded(counts))[1], steps)


def folded(counts: Histogram) -> Histogram:
    """Return the histogram of the magnitudes, assuming even spread within a bin."""
    largest = max(abs(counts.low), abs(counts.high))
    if not largest:
        return Histogram(0.0, 0.0, counts.counts, counts.zeros)
    edges = np.linspace(0, largest, len(counts.counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts.counts, dtype=np.float64)])
    # Values in [a, b] of magnitude: those in [a, b] and those in [-b, -a].
    inside = np.interp(edges, counts.edges, below) - np.interp(-edges, counts.edges, below)
    return Histogram(0.0, largest, np.diff(inside), counts.zeros)
