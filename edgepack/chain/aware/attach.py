"""A network that computes in 8 bits while it trains. Only importable where torch is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from edgepack.chain.aware.activation import Dynamic, Static
from edgepack.chain.aware.fake import fake_blocks, fake_weights
from edgepack.chain.aware.sites import Sites
from edgepack.chain.quantize.observe import Histogram, Range
from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.ranges import of_histogram, of_range
from edgepack.chain.quantize.scheme import SYMMETRIC, WEIGHTS
from edgepack.chain.quantize.unranged.blocks import BESIDE

# Steps on either side of a weight's zero at reduced range.
REDUCED = 63.5
# Names of the parts that a layer has meanwhile.
INPUT, OUTPUT = "aware_input", "aware_output"
# A layer, and whether what it gives is meant rather than what it reads.
Point = tuple[str, bool]


class Attached:
    """Fake quantization in a network, until it is closed.

    Ranges are buffers of parts that the network has meanwhile: a checkpoint keeps them.

    Args:
        network: float, in eval mode, on the CPU.
        sites: what is quantized.
        options: of the `quantize` that follows.
        batches: gives the arguments of some calls, the same ones each time.
    """

    def __init__(
        self,
        network: Any,
        sites: Sites,
        options: QuantizeOptions,
        batches: Callable[[], Iterable[Any]],
    ) -> None:
        self._layers = {name: network.get_submodule(name) for name in sites.layers}
        points = [(name, False) for name in sites.layers] + [(name, True) for name in sites.outputs]
        parts: dict[Point, Any] = {}
        if options.mode == "static":
            seen = self._observed(network, points, batches)
            parts = {point: _static(*found, options) for point, found in seen.items()}
        elif options.mode == "dynamic":
            parts = {(name, False): Dynamic() for name in sites.layers}
        self._parts: list[tuple[Any, str]] = []
        self._hooks: list[Any] = []
        for (name, output), part in parts.items():
            self._layers[name].add_module(OUTPUT if output else INPUT, part)
            self._parts.append((self._layers[name], OUTPUT if output else INPUT))
        for layer in self._layers.values():
            hooked = layer.register_forward_pre_hook(_before(_weights(layer, options)))
            self._hooks += [hooked, layer.register_forward_hook(_after, always_call=True)]

    def close(self) -> None:
        """The network as it was, with the weights that it has learnt."""
        for hook in self._hooks:
            hook.remove()
        for layer, part in self._parts:
            delattr(layer, part)

    def _observed(
        self, network: Any, points: list[Point], batches: Callable[[], Iterable[Any]]
    ) -> dict[Point, tuple[Histogram, tuple[float, float]]]:
        """By point, a histogram and the mean extremes of a batch: two runs of the samples."""
        extremes: dict[Point, list[Any]] = {point: [] for point in points}

        def extreme(point: Point, values: Any) -> None:
            extremes[point].append(torch.stack(torch.aminmax(values)).numpy())

        def count(point: Point, values: Any) -> None:
            histograms[point].add(values.numpy())

        self._run(network, points, batches, extreme)
        seen = {point: np.stack(found).astype(float) for point, found in extremes.items()}
        histograms = {
            p: Histogram(found[:, 0].min(), found[:, 1].max()) for p, found in seen.items()
        }
        self._run(network, points, batches, count)
        return {p: (histograms[p], tuple(found.mean(axis=0).tolist())) for p, found in seen.items()}

    def _run(
        self,
        network: Any,
        points: list[Point],
        batches: Callable[[], Iterable[Any]],
        look: Callable[[Point, Any], None],
    ) -> None:
        def looking(point: Point) -> Callable[[Any, Any, Any], None]:
            return lambda _layer, given, made: look(point, made if point[1] else given[0])

        hooks = [self._layers[p[0]].register_forward_hook(looking(p)) for p in points]
        try:
            with torch.no_grad():
                for feed in batches():
                    network(*feed)
        finally:
            for hook in hooks:
                hook.remove()


def _static(counts: Histogram, seen: tuple[float, float], options: QuantizeOptions) -> Static:
    """The quantization that the calibrator of `quantize` chooses, to begin with."""
    if options.calibrator == "minmax":
        found = of_range(Range(counts.low, counts.high, 0), options.scheme)
    else:
        found = of_histogram(counts, options)
    low = -found.high if options.scheme in SYMMETRIC else found.low
    return Static(low, found.high, seen, options.scheme)


def _weights(layer: Any, options: QuantizeOptions) -> Callable[[Any], Any]:
    """How the weights of a layer are quantized."""
    if options.bits == 4 and options.block and isinstance(layer, nn.Linear):
        # As `quantize.unranged.blocks.in_blocks` says it.
        width = layer.in_features
        if -(-width // options.block) * (options.block / 2 + BESIDE) < width:
            return partial(fake_blocks, block=options.block)
    steps, lowest = WEIGHTS[options.scheme]
    if options.range == "reduced" and options.mode != "weights":
        steps = REDUCED
    return partial(fake_weights, steps=steps, lowest=lowest)


def _before(weights: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Quantize what a layer reads, and its weights for this one call."""

    def quantize(layer: Any, given: Any) -> Any:
        # An attribute of its own stands before the parameter of that name, which stays what is
        # trained, stored and counted.
        layer.__dict__["weight"] = weights(layer._parameters["weight"])
        read = layer._modules.get(INPUT)
        return given if read is None else (read(given[0]), *given[1:])

    return quantize


def _after(layer: Any, _given: Any, made: Any) -> Any:
    layer.__dict__.pop("weight", None)
    rounded = layer._modules.get(OUTPUT)
    return made if rounded is None else rounded(made)
