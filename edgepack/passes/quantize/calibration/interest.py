"""Choice of the statistics that layers need, and the accuracy of their moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from edgepack.data.samples import Samples
from edgepack.ledger import Progress
from edgepack.passes.quantize.calibration.activations import cover_range
from edgepack.passes.quantize.calibration.moments import Moments
from edgepack.passes.quantize.calibration.observe import Interest, observe
from edgepack.passes.quantize.calibration.partition import divide_all
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import Affine

# A layer, the quantization of its input (None: float), and the input's moments (None: unknown).
ObservedLayer = tuple[Layer, "Affine | None", "Moments | None"]


def plan_interest(
    points: Sequence[str],
    histograms: bool,
    layers: Sequence[Layer],
    options: QuantizeOptions,
    quantized: Mapping[str, str],
) -> Interest:
    """Return what the quantization needs to know of the activations.

    Args:
        points: tensors whose range is stored or needed.
        histograms: whether their distribution is needed, too.
        layers: layers whose weights will be rounded.
        options: rounding and bias correction.
        quantized: tensors that are quantized on the device, as keys.
    """
    squares = options.rounding == "gptq"
    if not (squares or options.bias_correction):
        return Interest(points, histograms)
    errors = frozenset(layer.input for layer in layers if layer.input in quantized)
    return Interest(points, histograms, layers, divide_all(layers, squares), errors)


class LayerSteps:
    """Progress of the weights, in steps that cost about as much as a sample.

    Args:
        layers: layers whose weights will be rounded.
        samples: number of samples that were run, and announced as steps.
        progress: receives the steps.
    """

    def __init__(self, layers: Sequence[Layer], samples: int, progress: Progress) -> None:
        self._progress = progress
        # The weights of a network take about a third of the time of the samples.
        total = max(samples // 3, len(layers))
        costs = np.array([layer.rows.size for layer in layers], dtype=np.float64)
        shares = np.cumsum(costs) / max(costs.sum(), 1)
        self._steps: dict[int, int] = {}
        done = 0
        for layer, share in zip(layers, shares, strict=True):
            reached = round(float(share) * total)
            self._steps[layer.index] = reached - done
            done = reached
        progress.expect(samples + done)

    def finish(self, layer: Layer) -> None:
        """Count a layer as done."""
        self._progress.advance(self._steps[layer.index])


def announce(layers: Sequence[Layer], samples: Samples, progress: Progress) -> None:
    """Announce all steps before the samples are run, if their number is known."""
    count = getattr(samples, "count", None)
    if count:
        LayerSteps(layers, count, progress)


class MomentSummary:
    """Accuracy of the moments of all layers, and the layers that had to do with less.

    Args:
        options: rounding; only "gptq" has second moments.
    """

    def __init__(self, options: QuantizeOptions) -> None:
        self._compensated = options.rounding == "gptq"
        self._positions: list[float] = []
        self._parted: dict[str, int] = {}
        self._nearest: dict[str, int] = {}

    def add(self, layer: Layer, moments: Moments | None) -> None:
        """Take note of one layer."""
        if moments is None or not self._compensated:
            return
        partition = moments.partition
        if not moments.compensated:
            self._nearest[layer.name] = partition.columns
            return
        self._positions.append(moments.positions)
        if partition.parts > 1:
            self._parted[layer.name] = partition.width

    def figures(self) -> dict[str, Any] | None:
        """Return the figures for the ledger; None if no layer has second moments."""
        if not (self._positions or self._nearest):
            return None
        fewest = min(self._positions, default=0)
        return {
            "positions": round(fewest),
            "loss_error": round(float(np.sqrt(2 / fewest)), 4) if fewest else None,
            "parts": dict(self._parted),
            "nearest": dict(self._nearest),
        }


def observe_layers(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Samples | None,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[int, Iterator[ObservedLayer]]:
    """Observe the inputs of layers in the modes without stored ranges.

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
    quantized = dict.fromkeys(inputs, "") if options.mode == "dynamic" else {}
    interest = plan_interest(inputs, False, layers, options, quantized)
    announce(layers, samples, progress)
    observations = observe(model, interest, samples, options.batch_size, progress.advance)
    steps = LayerSteps(layers, observations.count, progress)

    def iterate() -> Iterator[ObservedLayer]:
        for layer in layers:
            source = None
            if quantized:
                # Ranges taken at run time on these samples are at most these.
                source = cover_range(observations.ranges[layer.input], options.scheme)
            yield layer, source, observations.moments(layer, source)
            steps.finish(layer)

    return observations.count, iterate()
