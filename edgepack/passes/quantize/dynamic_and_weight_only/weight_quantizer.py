"""Run the modes without stored ranges, with any layers in float."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.onnx_tools.fusion import fuse
from edgepack.onnx_tools.view import GraphView
from edgepack.passes.quantize.calibration.interest import MomentSummary, observe_layers
from edgepack.passes.quantize.dynamic_and_weight_only.constants import Choice, choose_nodes
from edgepack.passes.quantize.dynamic_and_weight_only.graph_writers import WRITERS, IntegerWeights
from edgepack.passes.quantize.figures import collect_weight_figures, describe_weights
from edgepack.passes.quantize.layers import by_index
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.prepare import check_excluded, nothing_to_do, prepare
from edgepack.passes.quantize.weights.channel_order import reorder
from edgepack.passes.quantize.weights.int4 import quantize_in_blocks, saves_in_blocks
from edgepack.passes.quantize.weights.int8 import Integers, quantize_layer, round_rows


class WeightQuantizer:
    """Integers of one model in one of these modes, and any number of graphs with them."""

    def __init__(
        self,
        model: onnx.ModelProto,
        samples: Samples | None,
        options: QuantizeOptions,
        progress: Progress,
    ) -> None:
        self.samples, self.progress = samples, progress
        # Only products of integer activations can saturate, so only those pairs are limited.
        if options.mode != "dynamic":
            options = replace(options, range="full")
        self.options = options
        self.seconds: dict[str, float] = {}
        self.reordered = 0
        self._load(prepare(model))
        if self.options.range == "pair-safe":
            with self._phase("order"):
                ordered, self.reordered = reorder(self.model, self.view, self.choice.layers)
                self._load(ordered)
        self._integers: IntegerWeights | None = None
        self._summary = MomentSummary(options)

    def _load(self, model: onnx.ModelProto) -> None:
        """Take over a prepared model, and choose the nodes that become integer."""
        self.model, self.view = model, GraphView(model)
        check_excluded(self.view, self.options.exclude)
        self.choice: Choice = choose_nodes(self.view, self.options.mode, self.options.exclude)
        if not self.choice.count:
            raise nothing_to_do(self.choice.float_layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes that become integer."""
        return tuple(self.view.nodes[index].name for index in self.choice.indices)

    def result(self, floats: Collection[str] = ()) -> PassResult[onnx.ModelProto]:
        """Return the quantized model and its figures; layers in `floats` stay float."""
        integers = self._quantize_weights()
        choice = self.choice.without(floats, self.view)
        with self._phase("writing"):
            model = self._emit(choice)
            kernels = Counter(node.op_type for node in fuse(model).graph.node)
        figures = collect_weight_figures(
            choice,
            self.options,
            integers.samples,
            len(by_index(choice.layers).keys() & integers.blocks.keys()),
            self._collect_factors(choice, integers),
            kernels,
            self.reordered,
            self._summary.figures(),
            self.seconds,
        )
        return PassResult(model, True, describe_weights(choice, figures), figures)

    def _collect_factors(self, choice: Choice, integers: IntegerWeights) -> list[np.ndarray]:
        """Return the factors by which the pair limit raised the scales of 8-bit layers."""
        factors = []
        for layer in choice.layers:
            if layer.index in integers.weights:
                factors.append(integers.weights[layer.index].factor)
        for index in choice.others:
            for constant in integers.constants[index]:
                factors.append(constant.factor)
        return factors

    def model_with(self, floats: Collection[str]) -> onnx.ModelProto:
        """Return the same model without the figures."""
        return self._emit(self.choice.without(floats, self.view))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def _emit(self, choice: Choice) -> onnx.ModelProto:
        writer = WRITERS[self.options.mode]
        return writer(self.model, self.view, choice, self._quantize_weights()).model()

    def _quantize_weights(self) -> IntegerWeights:
        """Quantize all weights once, and return them."""
        if self._integers is None:
            with self._phase("weights"):
                count, observed = observe_layers(
                    self.model, self.choice.layers, self.samples, self.options, self.progress
                )
                integers = IntegerWeights(count, constants=self._quantize_constants())
                # Matrices that are smaller in eight bits than in blocks of four keep eight.
                for layer, source, moments in observed:
                    self._summary.add(layer, moments)
                    block, width = self.options.block, layer.rows.shape[1]
                    if block and layer.op != "Conv" and saves_in_blocks(width, block):
                        four = quantize_in_blocks(layer, block, moments, self.options)
                        integers.blocks[layer.index] = four
                    else:
                        eight = quantize_layer(layer, source, moments, self.options)
                        integers.weights[layer.index] = eight
            self._integers = integers
        return self._integers

    def _quantize_constants(self) -> dict[int, tuple[Integers, ...]]:
        """Quantize the constants of other nodes than linear layers, by node index."""
        # Tables are read, not multiplied, so their pairs need no limit.
        full_range = replace(self.options, range="full")
        result: dict[int, tuple[Integers, ...]] = {}
        for index, table in self.choice.tables.items():
            result[index] = (round_rows(table.rows, full_range),)
        for index, constants in self.choice.others.items():
            result[index] = tuple(round_rows(each.rows, self.options) for each in constants)
        return result
