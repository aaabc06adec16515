"""The pass itself, phase after phase: observe, equalize, calibrate, round, write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx

from edgepack.chain.quantize import place_tensorrt
from edgepack.chain.quantize.emit import emit
from edgepack.chain.quantize.fused import float_operators, fused
from edgepack.chain.quantize.layers import Layer
from edgepack.chain.quantize.moments import key, observe_moments, passes
from edgepack.chain.quantize.observe import Range, observe_histograms, observe_ranges
from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.order import reorder
from edgepack.chain.quantize.place import Placement, place
from edgepack.chain.quantize.prepare import prepare
from edgepack.chain.quantize.ranges import of_histogram, of_range
from edgepack.chain.quantize.scheme import SYMMETRIC, Affine
from edgepack.chain.quantize.stream import grouped
from edgepack.chain.quantize.summary import details, notes
from edgepack.chain.quantize.view import GraphView
from edgepack.chain.quantize.weights import Quantized, quantize_layer
from edgepack.data.samples import Samples
from edgepack.errors import ChainError
from edgepack.ledger import PassResult, Progress
from edgepack.spec.document import did_you_mean


class Run:
    """One quantization of one model."""

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
        self._take(prepare(model))
        if options.range == "pair-safe":
            with self._phase("order"):
                ordered, self.reordered = reorder(self.model, self.view, self.placement.layers)
                self._take(ordered)

    def _take(self, model: onnx.ModelProto) -> None:
        """Look at a prepared model, and decide what of it becomes integer."""
        self.model, self.view = model, GraphView(model)
        _check_excluded(self.view, self.options)
        placer = place_tensorrt.place if self.options.scheme == "tensorrt" else place
        self.placement: Placement = placer(self.view, self.options.exclude)
        if not self.placement.layers:
            raise _nothing_to_do(self.placement)

    def result(self) -> PassResult[onnx.ModelProto]:
        """Run every phase."""
        with self._phase("ranges"):
            ranges, count = observe_ranges(
                self.model,
                self.placement.roots(),
                self.samples,
                self.options.batch_size,
                self.progress.advance,
            )
        lots = self._lots()
        histogrammed = self.options.calibrator != "minmax"
        self.progress.expect(count * (1 + histogrammed + len(lots)))
        with self._phase("calibration"):
            quantization = self._calibrated(ranges)
        with self._phase("weights"):
            weights = self._weights(lots, quantization, ranges, count)
        with self._phase("writing"):
            model = emit(self.model, self.view, self.placement, quantization, weights)
            # TensorRT fuses by rules of its own, and where onnxruntime stands in for it, it runs
            # the pairs in float.
            gpu = self.options.scheme in SYMMETRIC
            rest = None if gpu else float_operators(fused(model).graph)
        figures = details(
            self.placement,
            self.options,
            count,
            quantization,
            weights,
            self.reordered,
            rest,
            self.seconds,
        )
        return PassResult(model, True, notes(self.placement, quantization, figures), figures)

    def _lots(self) -> list[list[Layer]]:
        """The layers in lots, one for every pass over the samples that the weights need."""
        compensate = self.options.rounding == "gptq"
        if not (compensate or self.options.bias_correction):
            return []
        return passes(self.placement.layers, squares=compensate)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def _calibrated(self, ranges: Mapping[str, Range]) -> dict[str, Affine]:
        if self.options.calibrator == "minmax":
            return {name: of_range(seen, self.options.scheme) for name, seen in ranges.items()}
        histograms = observe_histograms(
            self.model, ranges, self.samples, self.options.batch_size, self.progress.advance
        )
        return {name: of_histogram(counts, self.options) for name, counts in histograms.items()}

    def _weights(
        self,
        lots: list[list[Layer]],
        quantization: Mapping[str, Affine],
        ranges: Mapping[str, Range],
        count: int,
    ) -> dict[int, Quantized]:
        points = self.placement.points
        of_input = {x.input: quantization[points[x.input]] for x in self.placement.layers}
        if not lots:
            return {
                layer.index: quantize_layer(layer, of_input[layer.input], None, self.options)
                for layer in self.placement.layers
            }
        weights: dict[int, Quantized] = {}
        for lot in lots:
            inputs = list(dict.fromkeys(layer.input for layer in lot))
            elements = {name: ranges[points[name]].elements for name in inputs}
            moments = observe_moments(
                self.model,
                lot,
                grouped(inputs, elements),
                of_input,
                self.samples,
                self.options.batch_size,
                self.progress.advance,
                count,
                squares=self.options.rounding == "gptq",
            )
            for layer in lot:
                weights[layer.index] = quantize_layer(
                    layer, of_input[layer.input], moments[key(layer)], self.options
                )
        return weights


def _check_excluded(view: GraphView, options: QuantizeOptions) -> None:
    known = [node.name for node in view.nodes]
    for name in options.exclude:
        if name not in known:
            raise ChainError(
                "quantize-exclude-unknown",
                f"the node {name!r} that is to stay float is not in the graph",
                why=f"the graph has {len(known)} nodes, none of that name{_near(name, known)}",
                hint="the names are those of the ONNX graph after export and simplification",
            )


def _near(name: str, known: list[str]) -> str:
    near = did_you_mean(name, known)
    # Without a near name it lists them all: thousands, in a real graph.
    return near if near.startswith("; did") else ""


def _nothing_to_do(placement: Placement) -> ChainError:
    reasons = [f"{name} ({kind}): {reason}" for name, kind, reason in placement.left]
    shown = "\n".join(reasons[:8])
    more = f"\nand {len(reasons) - 8} more" if len(reasons) > 8 else ""
    return ChainError(
        "quantize-nothing-to-do",
        "no layer of the model can be quantized",
        why=shown + more or "the graph has no convolution, Gemm or MatMul",
        hint="build it without the pass: --chain none",
    )
