"""Run the static mode: equalize, reorder, observe, calibrate, round, emit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import onnx

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.onnx_tools.fusion import count_float_operators, fuse
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.calibration.activations import choose_quantization
from edgepack.passes.quantize.calibration.interest import (
    LayerSteps,
    MomentSummary,
    announce,
    plan_interest,
)
from edgepack.passes.quantize.calibration.observe import Interest, Observations, observe
from edgepack.passes.quantize.equalize.scaling import equalize
from edgepack.passes.quantize.figures import collect_static_figures, describe_static
from edgepack.passes.quantize.layers import (
    RETURNED_TO_FLOAT,
    SLOW_VOLUME,
    Layer,
    by_index,
    is_volume,
    read_layer,
)
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.prepare import check_excluded, nothing_to_do, prepare
from edgepack.passes.quantize.scheme import SYMMETRIC, Affine
from edgepack.passes.quantize.static import placement_tensorrt
from edgepack.passes.quantize.static.forms import choose_forms, store_forms
from edgepack.passes.quantize.static.placement import Placement, place
from edgepack.passes.quantize.static.qdq_graph import write_qdq_graph
from edgepack.passes.quantize.weights.channel_order import reorder
from edgepack.passes.quantize.weights.int8 import Quantized, quantize_layer
from edgepack.passes.quantize.workers import open_workers


class StaticQuantizer:
    """One calibration of one model, and any number of quantizations of it.

    Layers are returned to float without measuring again: the inputs and weights of the others do
    not change, nor does the order of their channels.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        samples: Samples,
        options: QuantizeOptions,
        progress: Progress,
    ) -> None:
        self.samples, self.options, self.progress = samples, options, progress
        self.seconds: dict[str, float] = {}
        self.reordered = 0
        self.equalized: dict[str, Any] | None = None
        self._load(prepare(model))
        # Equalizing and reordering change constants, so the graph is read again after each.
        if self.options.equalize != "none" and self.placement.layers:
            with self._phase("equalize"):
                scaled, self.equalized = equalize(
                    self.model, self.placement.points, samples, options, progress.advance
                )
                self._load(scaled)
        if self.options.range == "pair-safe" and self.placement.layers:
            with self._phase("order"):
                ordered, self.reordered = reorder(self.model, self.view, self.placement.layers)
                self._load(ordered)
        self._quantization: dict[str, Affine] = {}
        self._quantized: dict[int, Quantized] = {}
        self._count = 0
        self._summary = MomentSummary(options)

    def _load(self, model: onnx.ModelProto) -> None:
        """Take over a prepared model, and decide which of its nodes become integer."""
        self.model, self.view = model, GraphView(model)
        check_excluded(self.view, self.options.exclude)
        self.forms, reasons = choose_forms(self.view, self.options)
        placement = self._placer(self.view, self.options.exclude, self._read)
        float_layers: list[tuple[str, str, str]] = []
        for name, kind, reason in placement.float_layers:
            if name not in self.forms:
                float_layers.append((name, kind, reasons.get(name, reason)))
        self.placement = replace(placement, float_layers=tuple(float_layers))
        if not (self.placement.layers or self.forms):
            raise nothing_to_do(self.placement.float_layers)

    def _read(self, view: GraphView, index: int) -> Layer | str:
        """Return the layer at a node, or the reason why it does not become static int8."""
        if self.options.conv3d != "static" and is_volume(view, index):
            return SLOW_VOLUME
        return read_layer(view, index)

    @property
    def _placer(self) -> Callable[..., Placement]:
        if self.options.scheme == "tensorrt":
            return placement_tensorrt.place
        return place

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers that become integer."""
        return (*(layer.name for layer in self.placement.layers), *self.forms)

    def result(self, floats: Collection[str] = ()) -> PassResult[onnx.ModelProto]:
        """Return the quantized model and its figures; layers in `floats` stay float."""
        self._measure()
        with self._phase("writing"):
            placement, quantization, weights = self._select_parts(floats)
            model = write_qdq_graph(self.model, self.view, placement, quantization, weights)
            model = store_forms(model, self.forms, floats)
            # TensorRT fuses by other rules, and onnxruntime in its place runs the pairs in float.
            gpu = self.options.scheme in SYMMETRIC
            float_counts = None if gpu else count_float_operators(fuse(model).graph)
        forms = [form for form in self.forms.values() if form.name not in floats]
        figures = collect_static_figures(
            placement,
            forms,
            self.options,
            self._count,
            quantization,
            [weights[layer.index].factor for layer in placement.layers],
            self.reordered,
            self.equalized,
            float_counts,
            self._summary.figures(),
            self.seconds,
        )
        notes = describe_static(placement, forms, quantization, figures)
        return PassResult(model, True, notes, figures)

    def model_with(self, floats: Collection[str]) -> onnx.ModelProto:
        """Return the same model without the figures."""
        self._measure()
        return store_forms(
            write_qdq_graph(self.model, self.view, *self._select_parts(floats)), self.forms, floats
        )

    def _select_parts(
        self, floats: Collection[str]
    ) -> tuple[Placement, dict[str, Affine], dict[int, Quantized]]:
        """Return the placement, quantizations and weights when some layers stay float."""
        placement = self.placement
        if floats:
            placement = self._place_without(floats)
        roots = placement.roots()
        # A tensor that shared a root before keeps the quantization of that root.
        points = self.placement.points
        self._calibrate([name for name in roots if name not in points])
        quantization = {n: self._quantization[points.get(n, n)] for n in roots}
        weights = {layer.index: self._quantized[layer.index] for layer in placement.layers}
        return placement, quantization, weights

    def _place_without(self, floats: Collection[str]) -> Placement:
        """Place the pairs again, with these layers in float."""
        layers = by_index(self.placement.layers)
        reasons: dict[str, str] = {}
        for name, _, reason in self.placement.float_layers:
            reasons[name] = reason
        for form in self.forms.values():
            reasons[form.name] = form.reason

        # Layers that stay integer are reused. Placing changes their outputs, so each is copied with
        # the node's own output.
        def read(view: GraphView, index: int) -> Layer | str:
            layer = layers.get(index)
            if layer is None:
                return reasons[view.nodes[index].name]
            return replace(layer, output=view.nodes[index].output[0])

        placement = self._placer(self.view, {*self.options.exclude, *floats}, read)
        float_layers: list[tuple[str, str, str]] = []
        for name, kind, reason in placement.float_layers:
            if name in floats:
                float_layers.append((name, kind, RETURNED_TO_FLOAT))
            elif name not in self.forms:
                float_layers.append((name, kind, reason))
        return replace(placement, float_layers=tuple(float_layers))

    def _calibrate(self, names: Sequence[str]) -> None:
        """Measure tensors that were float before, such as a skip branch on another operand."""
        new = [name for name in names if name not in self._quantization]
        if new:
            observations = self._observe(Interest(new, self._histogrammed), _ignore_progress)
            self._quantization.update(choose_quantization(observations, new, self.options))

    @property
    def _histogrammed(self) -> bool:
        return self.options.calibrator != "minmax"

    def _observe(self, interest: Interest, advance: Callable[[int], None]) -> Observations:
        return observe(self.model, interest, self.samples, self.options.batch_size, advance)

    def _measure(self) -> None:
        """Run the samples and quantize the weights, once."""
        if self._quantized or not self.placement.layers:
            return
        placement = self.placement
        roots = placement.roots()
        announce(placement.layers, self.samples, self.progress)
        with self._phase("samples"):
            interest = plan_interest(
                roots, self._histogrammed, placement.layers, self.options, placement.points
            )
            observations = self._observe(interest, self.progress.advance)
        with self._phase("calibration"):
            self._quantization = choose_quantization(observations, roots, self.options)
        with self._phase("weights"):
            self._quantized = self._quantize_layers(observations)
        self._count = observations.count

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        # The seconds of every phase go to the ledger.
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def _quantize_layers(self, observations: Observations) -> dict[int, Quantized]:
        layers, points = self.placement.layers, self.placement.points
        steps = LayerSteps(layers, observations.count, self.progress)
        weights: dict[int, Quantized] = {}
        with open_workers() as pool:
            futures = []
            for layer in layers:
                source = self._quantization[points[layer.input]]
                moments = observations.moments(layer, source)
                self._summary.add(layer, moments)
                futures.append(pool.submit(quantize_layer, layer, source, moments, self.options))
            for layer, future in zip(layers, futures, strict=True):
                weights[layer.index] = future.result()
                steps.finish(layer)
        return weights


def _ignore_progress(samples: int) -> None:
    """Ignore progress: samples that a search runs were not announced."""
