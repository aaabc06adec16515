"""Observe activations on calibration samples, and choose the quantization of each.

Exact ranges come first, then histograms over those ranges, both streamed. Ranges are reduced by
nodes appended to the graph, so that a run returns only a few values per tensor; histograms process
a tensor at a time and store counts.

A symmetric scheme has one free end, so its calibrators use magnitudes, as TensorRT's own do. The
entropy calibrator is then exactly that of Migacz, "8-bit inference with TensorRT" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import methodcaller

import numpy as np
import onnx
from onnx import helper

from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.stream import grouped, run_batch, session, tensors
from edgepack.passes.quantize.calibration.calibrators import (
    Histogram,
    choose_entropy,
    choose_minmax,
    choose_mse,
    choose_percentile,
    fold_magnitudes,
)
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import LEVELS, SYMMETRIC, Affine, fit_affine, fit_symmetric

# Values that one batch adds to the histogram of a tensor; larger tensors are subsampled evenly.
COUNTED = 2**17


@dataclass
class Range:
    """Exact range of a tensor over all samples.

    Attributes:
        low, high: smallest and largest value.
        elements: size of the largest batch.
    """

    low: float
    high: float
    elements: int


def observe_ranges(
    model: onnx.ModelProto,
    names: Sequence[str],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> tuple[dict[str, Range], int]:
    """Return the exact range of each tensor, and the number of samples.

    Raises:
        ChainError: quantize-calibration-nonfinite, quantize-calibration-empty.
    """
    runner = session(_append_reductions(model, names))
    ranges: dict[str, Range] = {}
    count = 0
    for batch in samples.batches(batch_size):
        # Four results a tensor, in the order of `_append_reductions`.
        results = iter(run_batch(runner, batch))
        for name in names:
            low, high, mean, size = map(methodcaller("item"), islice(results, 4))
            if size == 0:
                continue
            if not np.isfinite([low, high, mean]).all():
                raise _nonfinite(name, count, batch.count, samples.origin)
            observed = ranges.setdefault(name, Range(low, high, 0))
            observed.low, observed.high = min(observed.low, low), max(observed.high, high)
            observed.elements = max(observed.elements, size)
        count += batch.count
        advance(batch.count)
    if not count:
        raise _no_samples(f"{samples.origin} is empty")
    for name in names:
        if name not in ranges:
            raise _no_samples(f"the tensor {name!r} is empty on all {count} samples")
    return ranges, count


def count_elements(ranges: Mapping[str, Range]) -> dict[str, int]:
    """Return the number of values of each tensor in its largest batch."""
    elements = {}
    for name, observed in ranges.items():
        elements[name] = observed.elements
    return elements


def _no_samples(why: str) -> ChainError:
    return ChainError(
        "quantize-calibration-empty",
        "there are no calibration samples",
        why=why,
        hint="pass 100 or more samples like those on the device",
    )


def observe_histograms(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    samples: Samples,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Histogram]:
    """Return a histogram of each tensor over its exact range."""
    histograms = {}
    for name, observed in ranges.items():
        histograms[name] = Histogram(observed.low, observed.high)
    # The largest batch decides how many tensors fit in memory at a time.
    groups = grouped(list(ranges), count_elements(ranges))
    runs = tensors(model, groups, samples, batch_size, advance)
    for number, arrays in runs:
        for name, values in arrays.items():
            histograms[name].add(spread(values.ravel(), COUNTED, number))
    return histograms


def choose_quantization(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    samples: Samples,
    options: QuantizeOptions,
    advance: Callable[[int], None],
) -> dict[str, Affine]:
    """Return the quantization of each observed tensor; calibrators run the samples again.

    Args:
        model: float32, prepared.
        ranges: of the tensors.
        samples: the calibration samples.
        options: scheme, calibrator and batch_size.
        advance: receives the number of samples after each batch.
    """
    if options.calibrator == "minmax":
        return cover_ranges(ranges, options.scheme)
    histograms = observe_histograms(model, ranges, samples, options.batch_size, advance)
    quantization = {}
    for name, counts in histograms.items():
        quantization[name] = calibrate_histogram(counts, options)
    return quantization


def cover_ranges(ranges: Mapping[str, Range], scheme: str) -> dict[str, Affine]:
    """Return for each tensor the quantization that covers its range."""
    quantization = {}
    for name, observed in ranges.items():
        quantization[name] = cover_range(observed, scheme)
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


def spread(items: np.ndarray, most: int, offset: int) -> np.ndarray:
    """Return about `most` entries along axis 0 at most, evenly spread from `offset` on.

    Example: 10 items with `most` = 4 and `offset` = 1 give items 1, 4 and 7.
    """
    if len(items) <= most:
        return items
    # Rows of a feature map often have an even length; an odd step does not repeat their columns.
    step = -(-len(items) // most) | 1
    return items[offset % step :: step]


def _append_reductions(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of the model that outputs minimum, maximum, mean and size of each tensor."""
    result = copied(model)
    graph = result.graph
    del graph.output[:]
    for position, name in enumerate(names):
        for kind in ("ReduceMin", "ReduceMax", "ReduceMean", "Size"):
            output = f"edgepack_{kind}_{position}"
            # Size takes no attributes; the others reduce over all axes.
            settings = {"keepdims": 0} if kind != "Size" else {}
            graph.node.append(helper.make_node(kind, [name], [output], **settings))
            graph.output.append(onnx.ValueInfoProto(name=output))
    return result


def _nonfinite(name: str, first: int, count: int, origin: str) -> ChainError:
    position = f"sample {first}"
    if count > 1:
        position = f"samples {first} to {first + count - 1}"
    return ChainError(
        "quantize-calibration-nonfinite",
        "the model returned NaN or infinity during calibration",
        why=f"in the tensor {name!r} on {position} of {origin}",
        hint="check those samples and the preprocessing: the float model itself returns it",
    )
