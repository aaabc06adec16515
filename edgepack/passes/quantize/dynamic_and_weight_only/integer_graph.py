"""Emit a graph with integer constants: the common part of the modes without stored ranges.

Constants become float again as Cast and Mul, never as DequantizeLinear: onnxruntime folds the
former once, when it loads a model. The latter it either runs at every inference (1.19 to 1.23), or
takes as a request to quantize the activations as well (1.31).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from edgepack.onnx_tools.view import GraphView
from edgepack.onnx_tools.writer import Writer
from edgepack.passes.quantize.dynamic_and_weight_only.constants import Choice, Constant
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.options import QuantizeOptions
from edgepack.passes.quantize.scheme import WEIGHTS
from edgepack.passes.quantize.weights.int4 import Blocks
from edgepack.passes.quantize.weights.int8 import Quantized, full_scale
from edgepack.passes.quantize.weights.rounding import nearest


@dataclass(frozen=True)
class Integers:
    """A constant as s8.

    Attributes:
        rows: (scales, values of each) int8.
        scale: (scales,) float32.
        factor: (scales,) by which the pair limit raised each scale.
    """

    rows: np.ndarray
    scale: np.ndarray
    factor: np.ndarray


def integers_of(constant: Constant, options: QuantizeOptions) -> Integers:
    """Round a constant to the nearest steps, with pairs limited as `options.range` says."""
    _, lowest = WEIGHTS[options.scheme]
    largest, factor = full_scale(constant.rows, options)
    scale = largest.astype(np.float32)
    rows = nearest(constant.rows / scale[:, None], options.range != "full", lowest)
    return Integers(rows.astype(np.int8), scale, factor)


@dataclass(frozen=True)
class IntegerWeights:
    """All integers of a model, by node index.

    Attributes:
        samples: number of calibration samples; 0 if none were needed.
        constants: of recurrent and transposed layers and tables, in the order of `Constant`s.
        weights: of linear layers, s8.
        blocks: of linear layers, four bits, with their (outputs,) bias.
    """

    samples: int
    constants: dict[int, tuple[Integers, ...]]
    weights: dict[int, Quantized] = field(default_factory=dict)
    blocks: dict[int, tuple[Blocks, np.ndarray]] = field(default_factory=dict)


class WeightEmitter(ABC):
    """Writes the graph; subclasses write the layers.

    Args:
        model: float32, prepared.
        view: of that model.
        choice: nodes that become integer.
        integers: of those nodes.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        view: GraphView,
        choice: Choice,
        integers: IntegerWeights,
    ) -> None:
        self.view, self.choice, self.integers = view, choice, integers
        self.writer = Writer(model, view)
        self._real: dict[tuple[str, str], str] = {}

    def model(self) -> onnx.ModelProto:
        """Return the model with integer constants."""
        layers = {layer.index: layer for layer in self.choice.layers}
        added = {layer.added: layer for layer in self.choice.layers if layer.added is not None}
        for index, node in enumerate(self.view.nodes):
            if index in layers:
                self.layer(layers[index], node)
            elif index in self.choice.others:
                self.other(index, node)
            elif index in self.choice.tables:
                self._write_table(index, node)
            elif index in added:
                self._write_added_bias(added[index], node)
            else:
                self.writer.keep(node)
        return self.writer.model()

    @abstractmethod
    def layer(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Write a linear layer."""

    @abstractmethod
    def other(self, index: int, node: onnx.NodeProto) -> None:
        """Write a layer of `Choice.others`."""

    def bias(self, layer: Layer) -> np.ndarray:
        """Return the (outputs,) float32 bias of a layer, corrected if the options say so."""
        four = self.integers.blocks.get(layer.index)
        bias = self.integers.weights[layer.index].real_bias if four is None else four[1]
        return bias.astype(np.float32)

    def real(self, name: str, integers: np.ndarray, scale: np.ndarray) -> str:
        """Append Cast and Mul behind a constant and return the result's name; repeats are shared.

        Args:
            name: of the float constant.
            integers: s8.
            scale: float32, in a shape that broadcasts over the integers.
        """
        # Example: w_quantized -> w_Cast -> w_steps -> w_Mul (by w_scale) -> w_dequantized.
        stored = self.writer.constant(f"{name}_quantized", integers)
        scales = self.writer.constant(f"{name}_scale", scale)
        if (stored, scales) not in self._real:
            steps, real = (self.writer.free(f"{name}_{kind}") for kind in ("steps", "dequantized"))
            self.writer.node("Cast", [stored], [steps], f"{name}_Cast", to=TensorProto.FLOAT)
            self.writer.node("Mul", [steps, scales], [real], f"{name}_Mul")
            self._real[stored, scales] = real
        return self._real[stored, scales]

    def _write_table(self, index: int, node: onnx.NodeProto) -> None:
        """Write a Gather on integers; only the rows that it reads become float."""
        constant, integers = self.choice.tables[index], self.integers.constants[index][0]
        stored = self.writer.constant(f"{constant.name}_quantized", constant.stored(integers.rows))
        scales = self.writer.constant(f"{constant.name}_scale", constant.spread(integers.scale))
        result = node.output[0]
        rows, scale, steps = (self.writer.free(f"{result}_{k}") for k in ("rows", "scale", "steps"))
        for source, output in ((stored, rows), (scales, scale)):
            self.writer.node("Gather", [source, node.input[1]], [output], output)
        self.writer.node("Cast", [rows], [steps], f"{node.name}_Cast", to=TensorProto.FLOAT)
        self.writer.node("Mul", [steps, scale], [result], node.name)

    def _write_added_bias(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Write the Add behind a MatMul with that layer's corrected bias."""
        copy = self.writer.keep(node)
        # An unchanged bias needs no second constant.
        bias = self.bias(layer)
        if not np.array_equal(bias, layer.bias.astype(np.float32)):
            slot = list(node.input).index(layer.bias_name)
            copy.input[slot] = self.writer.constant(f"{layer.name}_bias", bias)
