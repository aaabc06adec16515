"""From what was seen of an activation to its quantization: the calibrator's range, as the scheme
can express it.

A symmetric scheme has one free end. Its calibrators look at magnitudes, as TensorRT's own do: the
entropy one is then that of Migacz, "8-bit inference with TensorRT" (2017), to the letter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from edgepack.chain.quantize import calibrators
from edgepack.chain.quantize.observe import Histogram, Range
from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.scheme import LEVELS, SYMMETRIC, Affine, affine, signed


def of_range(observed: Range, scheme: str) -> Affine:
    """The quantization that holds everything that was seen."""
    if scheme in SYMMETRIC:
        return signed(max(abs(observed.low), abs(observed.high)), SYMMETRIC[scheme])
    return affine(observed.low, observed.high)


def of_histogram(counts: Histogram, options: QuantizeOptions) -> Affine:
    """The quantization that the calibrator chooses."""
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
        # Magnitudes have one tail, which takes what two would share.
        choose["percentile"] = partial(calibrators.percentile, percent=2 * options.percentile - 100)
    return signed(choose[options.calibrator](folded(counts))[1], steps)


def folded(counts: Histogram) -> Histogram:
    """The histogram of the magnitudes; within a bin, values are taken for evenly spread."""
    largest = max(abs(counts.low), abs(counts.high))
    if not largest:
        return Histogram(0.0, 0.0, counts.counts, counts.zeros)
    edges = np.linspace(0, largest, len(counts.counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts.counts, dtype=np.float64)])
    inside = np.interp(edges, counts.edges, below) - np.interp(-edges, counts.edges, below)
    return Histogram(0.0, largest, np.diff(inside), counts.zeros)
