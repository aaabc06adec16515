"""Attachment of fake quantization to a network. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgepack.passes.aware.activation import Dynamic, Static
from edgepack.passes.aware.fake import fake_blocks, fake_weights
from edgepack.passes.aware.sites import Sites
from edgepack.passes.network import ForwardHook
from edgepack.passes.quantize.calibration.activations import calibrate_histogram, cover_range
from edgepack.passes.quantize.calibration.calibrators import Histogram
from edgepack.passes.quantize.calibration.observe import Range
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import SYMMETRIC, WEIGHTS
from edgepack.passes.quantize.weights.int4 import saves_in_blocks

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# Steps on either side of a weight's zero at reduced range.
REDUCED = 63.5
# Names of the submodules that a layer has while fake quantization is attached.
INPUT, OUTPUT = "aware_input", "aware_output"
# Name of a layer, and True for its output or False for its input.
Point = tuple[str, bool]
Inputs = tuple[torch.Tensor, ...]


class Attached:
    """Fake quantization in a network, until `close` is called.

    Ranges are buffers of submodules added to the network, so checkpoints include them.

    Args:
        network: float, in eval mode, on the CPU.
        sites: the layers to quantize.
        options: of the `quantize` that follows.
        batches: returns the arguments of some calls, the same ones each time.
    """

    def __init__(
        self,
        network: nn.Module,
        sites: Sites,
        options: QuantizeOptions,
        batches: Callable[[], Iterable[Sequence[torch.Tensor]]],
    ) -> None:
        self._layers = {name: network.get_submodule(name) for name in sites.layers}
        points = [(name, False) for name in sites.layers]
        points += [(name, True) for name in sites.outputs]
        # With quantized weights alone (mode=weights) activations stay float.
        parts: dict[Point, nn.Module] = {}
        if options.mode == "static":
            for point, record in self._observe(network, points, batches).items():
                parts[point] = _start_static(*record, options)
        elif options.mode == "dynamic":
            for name in sites.layers:
                parts[name, False] = Dynamic()
        self._parts: list[tuple[nn.Module, str]] = []
        self._hooks: list[RemovableHandle] = []
        for (name, output), part in parts.items():
            attribute = OUTPUT if output else INPUT
            self._layers[name].add_module(attribute, part)
            self._parts.append((self._layers[name], attribute))
        for layer in self._layers.values():
            hook = layer.register_forward_pre_hook(_make_pre_hook(_choose_rounding(layer, options)))
            # always_call: the quantized weight has to be removed even after an error.
            self._hooks += [hook, layer.register_forward_hook(_finish_call, always_call=True)]

    def close(self) -> None:
        """Remove the fake quantization; the network keeps the weights that it has learnt."""
        for hook in self._hooks:
            hook.remove()
        for layer, part in self._parts:
            delattr(layer, part)

    def _observe(
        self,
        network: nn.Module,
        points: list[Point],
        batches: Callable[[], Iterable[Sequence[torch.Tensor]]],
    ) -> dict[Point, tuple[Histogram, tuple[float, float]]]:
        """Return a histogram and the mean extremes of the batches for each point.

        Runs the samples twice: the bins of a histogram need the extremes of all of them. Batches
        with the extremes [0, 6] and [-1, 8] give bins from -1 to 8, and the means (-0.5, 7).
        """
        extremes: dict[Point, list[np.ndarray]] = {point: [] for point in points}
        histograms: dict[Point, Histogram] = {}

        def record_extremes(point: Point, values: torch.Tensor) -> None:
            extremes[point].append(torch.stack(torch.aminmax(values)).numpy())

        def count(point: Point, values: torch.Tensor) -> None:
            histograms[point].add(values.numpy())

        self._run(network, points, batches, record_extremes)
        records = {}
        for point, rows in extremes.items():
            # [batches, 2]: the smallest and the largest value of each batch.
            table = np.stack(rows).astype(float)
            histograms[point] = Histogram(table[:, 0].min(), table[:, 1].max())
            records[point] = (histograms[point], tuple(table.mean(axis=0).tolist()))
        self._run(network, points, batches, count)
        return records

    def _run(
        self,
        network: nn.Module,
        points: list[Point],
        batches: Callable[[], Iterable[Sequence[torch.Tensor]]],
        record: Callable[[Point, torch.Tensor], None],
    ) -> None:
        """Run the batches, and pass the values at each point to `record`."""

        def make_hook(point: Point) -> ForwardHook:
            def call(_layer: nn.Module, inputs: Inputs, result: torch.Tensor) -> None:
                _, output = point
                record(point, result if output else inputs[0])

            return call

        hooks = []
        for point in points:
            hooks.append(self._layers[point[0]].register_forward_hook(make_hook(point)))
        try:
            with torch.no_grad():
                for feed in batches():
                    network(*feed)
        finally:
            for hook in hooks:
                hook.remove()


def _start_static(
    counts: Histogram, extremes: tuple[float, float], options: QuantizeOptions
) -> Static:
    """Return fake quantization that starts from the range of the calibrator of `quantize`."""
    if options.calibrator == "minmax":
        limits = cover_range(Range(counts.low, counts.high), options.scheme)
    else:
        limits = calibrate_histogram(counts, options)
    low = limits.low
    if options.scheme in SYMMETRIC:
        low = -limits.high
    return Static(low, limits.high, extremes, options.scheme)


def _choose_rounding(
    layer: nn.Module, options: QuantizeOptions
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the fake quantization of a layer's weights."""
    block = options.block
    linear = isinstance(layer, nn.Linear)
    # Weights get blocks only where `quantize` will give them blocks.
    if options.bits == 4 and block and linear and saves_in_blocks(layer.in_features, block):
        return partial(fake_blocks, block=block)
    steps, lowest = WEIGHTS[options.scheme]
    if options.range == "reduced" and options.mode != "weights":
        steps = REDUCED
    return partial(fake_weights, steps=steps, lowest=lowest)


def _make_pre_hook(
    rounding: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[nn.Module, Inputs], Inputs]:
    """Return a pre-hook that quantizes a layer's input, and its weights for this call."""

    def quantize(layer: nn.Module, inputs: Inputs) -> Inputs:
        # An instance attribute takes precedence over the parameter of the same name; the parameter
        # remains the one that is trained, stored and counted.
        layer.__dict__["weight"] = rounding(layer._parameters["weight"])
        read = layer._modules.get(INPUT)
        if read is None:
            return inputs
        return (read(inputs[0]), *inputs[1:])

    return quantize


def _finish_call(layer: nn.Module, _inputs: Inputs, result: torch.Tensor) -> torch.Tensor:
    """Remove the quantized weight, and quantize the output."""
    layer.__dict__.pop("weight", None)
    rounded = layer._modules.get(OUTPUT)
    if rounded is None:
        return result
    return rounded(result)
