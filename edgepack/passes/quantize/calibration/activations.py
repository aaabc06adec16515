"""Choose the quantization of each observed activation.

A symmetric scheme has one free end, so its calibrators use magnitudes, as TensorRT's own do. The
entropy calibrator is then exactly that of Migacz, "8-bit inference with TensorRT" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from edgepack.passes.quantize.calibration.calibrators import (
    Histogram,
    choose_entropy,
    choose_minmax,
    choose_mse,
    choose_percentile,
    fold_magnitudes,
)
from edgepack.passes.quantize.calibration.observe import Observations, Range
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import LEVELS, SYMMETRIC, Affine, fit_affine, fit_symmetric


def choose_quantization(
    observations: Observations, names: Iterable[str], options: QuantizeOptions
) -> dict[str, Affine]:
    """Return the quantization of each of these tensors.

    Args:
        observations: of the tensors, with histograms unless the calibrator is "minmax".
        names: of the tensors.
        options: scheme and calibrator.
    """
    quantization = {}
    for name in names:
        if options.calibrator == "minmax":
            quantization[name] = cover_range(observations.ranges[name], options.scheme)
        else:
            counts = observations.tensors[name].histogram.histogram()
            quantization[name] = calibrate_histogram(counts, options)
    return quantization


def cover_range(observed: Range, scheme: str) -> Affine:
    """Return the quantization that holds the observed range."""
    if scheme in SYMMETRIC:
        return fit_symmetric(max(abs(observed.low), abs(observed.high)), SYMMETRIC[scheme])
    return fit_affine(observed.low, observed.high)


def calibrate_histogram(counts: Histogram, options: QuantizeOptions) -> Affine:
    """Return the quantization that the calibrator chooses."""
    steps = SYMMETRIC.get(options.scheme)
    levels = steps or LEVELS
    choose: dict[str, Callable[[Histogram], tuple[float, float]]] = {
        "minmax": choose_minmax,
        "percentile": partial(choose_percentile, percent=options.percentile),
        "entropy": partial(choose_entropy, levels=levels),
        "mse": partial(choose_mse, levels=levels),
    }
    if steps is None:
        return fit_affine(*choose[options.calibrator](counts))
    if options.calibrator == "percentile":
        # Magnitudes have one tail, which takes the share of both: 99.99 % leaves 0.01 % outside, as
        # 99.98 % with two equal tails leaves 0.01 % beyond the upper end.
        choose["percentile"] = partial(choose_percentile, percent=2 * options.percentile - 100)
    return fit_symmetric(choose[options.calibrator](fold_magnitudes(counts))[1], steps)
