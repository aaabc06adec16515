"""Observe the layers' inputs in modes without stored ranges, for rounding weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from edgepack.data.samples import Samples
from edgepack.ledger import Progress
from edgepack.onnx_tools.stream import grouped
from edgepack.passes.quantize.calibration.histograms import observe_ranges
from edgepack.passes.quantize.calibration.moments import (
    Moments,
    group_by_memory,
    key,
    observe_moments,
)
from edgepack.passes.quantize.calibration.ranges import of_range
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import Affine

# A layer, the quantization of its input (None: float), and the input's moments (None: unknown).
ObservedLayer = tuple[Layer, "Affine | None", "Moments | None"]


def observe_layers(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples | None,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[int, Iterator[ObservedLayer]]:
    """Observe the inputs of the layers, one group of layers at a time.

    Args:
        model: float32, prepared.
        layers: layers whose weights will be rounded.
        samples: calibration samples; None if the options need none.
        options: mode, rounding and bias correction.
        progress: receives the number of samples run.

    Returns:
        The number of samples, and every layer with its input's statistics.
    """
    if samples is None or not (layers and options.needs):
        return 0, ((layer, None, None) for layer in layers)
    inputs = list(dict.fromkeys(layer.input for layer in layers))
    ranges, count = observe_ranges(model, inputs, samples, options.batch_size, progress.advance)
    # Ranges taken at run time on these samples are at most these.
    of_input: dict[str, Affine] = {}
    if options.mode == "dynamic":
        of_input = {name: of_range(entry, options.scheme) for name, entry in ranges.items()}
    # One pass over the samples for the ranges, and one for each group of layers.
    squares = options.rounding == "gptq"
    lots = group_by_memory(layers, squares)
    progress.expect(count * (1 + len(lots)))

    def observed() -> Iterator[ObservedLayer]:
        for lot in lots:
            read = list(dict.fromkeys(layer.input for layer in lot))
            groups = grouped(read, {name: ranges[name].elements for name in read})
            moments = observe_moments(
                model, lot, groups, of_input, samples, options.batch_size,
                progress.advance, count, squares,
            )  # fmt: skip
            for layer in lot:
                yield layer, of_input.get(layer.input), moments[key(layer)]

    return count, observed()
