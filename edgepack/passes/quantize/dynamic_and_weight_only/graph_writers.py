"""Write graphs with integer constants: the modes without stored ranges.

Constants become float again as Cast and Mul, never as DequantizeLinear: onnxruntime folds the
former once, when it loads a model. The latter it either runs at every inference (1.19 to 1.23), or
takes as a request to quantize the activations as well (1.31).

dynamic   Activations are quantized at run time, each tensor by its own range. A product becomes
          DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which onnxruntime fuses: into
          DynamicQuantizeMatMul if one layer reads a tensor, otherwise into one MatMulIntegerToFloat
          for each layer behind a shared quantization. An LSTM becomes `com.microsoft`'s
          DynamicQuantizeLSTM, which quantizes the input at once and the state at every step.
weights   Float arithmetic, and a quarter or an eighth of the file size. Eight-bit weights are
          converted to float32 once, when onnxruntime loads the model. Four-bit weights stay
          integers in `com.microsoft`'s MatMulNBits, which multiplies by float32 activations
          (accuracy level 1; at level 4 it would round them to int8 on CPUs with kernels for that).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from edgepack.onnx_tools.view import GraphView
from edgepack.onnx_tools.writer import MICROSOFT, Writer
from edgepack.passes.quantize.dynamic_and_weight_only.constants import Choice, Constant
from edgepack.passes.quantize.layers import Layer, by_added_bias, by_index
from edgepack.passes.quantize.weights.int4 import Blocks
from edgepack.passes.quantize.weights.int8 import Integers, Quantized

# Number of inputs of an LSTM, before those that its quantized form appends: X, W, R, B,
# sequence_lens, initial_h, initial_c, P.
LSTM_INPUTS = 8
# Attributes that the quantized form does not have; layouts other than 0 were rejected earlier.
LSTM_ONLY = ("layout",)
# MatMulNBits' level of accuracy that multiplies by float32 activations.
FLOAT32 = 1


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


class GraphWriter(ABC):
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
        layers, added = by_index(self.choice.layers), by_added_bias(self.choice.layers)
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
            steps, real = self.writer.free_each(name, "steps", "dequantized")
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
        rows, scale, steps = self.writer.free_each(result, "rows", "scale", "steps")
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


class DynamicGraphWriter(GraphWriter):
    """Writes the graph of the mode "dynamic"."""

    def __init__(
        self, model: onnx.ModelProto, view: GraphView, choice: Choice, integers: IntegerWeights
    ) -> None:
        super().__init__(model, view, choice, integers)
        self._read: dict[str, tuple[str, str, str]] = {}

    def layer(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Write u8 times s8 in int32, times both scales, plus the bias of a Gemm."""
        weights, writer = self.integers.weights[layer.index], self.writer
        integers, scale, zero_point = self._quantize_input(layer.input)
        name = layer.weight
        stored = writer.constant(f"{name}_quantized", np.ascontiguousarray(weights.rows.T))
        scales = writer.constant(f"{name}_scale", weights.scale.astype(np.float32))
        output = node.output[0]
        sums, real, unit = writer.free_each(output, "sums", "real", "unit")
        writer.node(
            "MatMulInteger", [integers, stored, zero_point], [sums], f"{node.name}_MatMulInteger"
        )
        writer.node("Cast", [sums], [real], f"{node.name}_Cast", to=TensorProto.FLOAT)
        writer.node("Mul", [scale, scales], [unit], f"{node.name}_unit")
        bias = self.bias(layer)
        if layer.op == "MatMul" or not bias.any():
            # The bias of a MatMul is in the Add behind it.
            writer.node("Mul", [real, unit], [output], f"{node.name}_Mul")
            return
        product = writer.free(f"{output}_product")
        addend = writer.constant(f"{layer.name}_bias", bias)
        writer.node("Mul", [real, unit], [product], f"{node.name}_Mul")
        writer.node("Add", [product, addend], [output], f"{node.name}_Add")

    def other(self, index: int, node: onnx.NodeProto) -> None:
        """Write an LSTM with the same inputs, and weights as (directions, K, gates x hidden)."""
        copy = self.writer.keep(node)
        copy.op_type, copy.domain = "DynamicQuantizeLSTM", MICROSOFT
        attributes = [item for item in node.attribute if item.name not in LSTM_ONLY]
        del copy.attribute[:]
        copy.attribute.extend(attributes)
        copy.input.extend([""] * (LSTM_INPUTS - len(copy.input)))
        pairs = zip(self.choice.others[index], self.integers.constants[index], strict=True)
        for constant, integers in pairs:
            stored, scale, zeros = self._store_gates(constant, integers)
            copy.input[constant.slot] = stored
            copy.input.extend((scale, zeros))

    def _store_gates(self, constant: Constant, integers: Integers) -> tuple[str, str, str]:
        """Store an LSTM's weights and return the names of integers, scales and zero points."""
        writer, name = self.writer, constant.name
        # The kernel reads (directions, K, gates x hidden), the transpose of the float operator's.
        stored = constant.stored(integers.rows).transpose(0, 2, 1)
        scale = integers.scale.reshape(constant.values.shape[:2])
        return (
            writer.constant(f"{name}_quantized", np.ascontiguousarray(stored)),
            writer.constant(f"{name}_scale", scale),
            writer.constant("zeros", np.zeros(scale.shape, np.int8)),
        )

    def _quantize_input(self, name: str) -> tuple[str, str, str]:
        """Return a tensor's integers, scale and zero point, shared by all layers that read it."""
        if name not in self._read:
            names = self.writer.free_each(name, "quantized", "scale", "zero_point")
            self.writer.node(
                "DynamicQuantizeLinear", [name], names, f"{name}_DynamicQuantizeLinear"
            )
            self._read[name] = (names[0], names[1], names[2])
        return self._read[name]


class WeightOnlyGraphWriter(GraphWriter):
    """Writes the graph of the mode "weights"."""

    def layer(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Write a layer with s8 weights behind Cast and Mul, or a product with four bits."""
        four = self.integers.blocks.get(layer.index)
        if four is not None:
            self._write_product(layer, node, four[0])
            return
        weights = self.integers.weights[layer.index]
        integers = layer.stored(weights.rows)
        shape = [1] * integers.ndim
        shape[layer.axis] = len(weights.scale)
        weight = self.real(layer.weight, integers, weights.scale.astype(np.float32).reshape(shape))
        copy = self.writer.keep(node)
        copy.input[1] = weight
        bias = self.bias(layer)
        if layer.op != "MatMul" and (layer.bias_name is not None or bias.any()):
            del copy.input[2:]
            copy.input.append(self.writer.constant(f"{layer.name}_bias", bias))
        for item in copy.attribute:
            # Alpha and beta of a Gemm are folded into the weights and the bias.
            if item.name in ("alpha", "beta"):
                item.f = 1.0

    def other(self, index: int, node: onnx.NodeProto) -> None:
        """Write a layer with s8 weights behind Cast and Mul."""
        pairs = zip(self.choice.others[index], self.integers.constants[index], strict=True)
        names: dict[int, str] = {}
        for constant, integers in pairs:
            stored, scale = constant.stored(integers.rows), constant.spread(integers.scale)
            names[constant.slot] = self.real(constant.name, stored, scale)
        copy = self.writer.keep(node)
        for slot, name in names.items():
            copy.input[slot] = name

    def _write_product(self, layer: Layer, node: onnx.NodeProto, blocks: Blocks) -> None:
        """Write MatMulNBits, and an Add if a Gemm has a bias."""
        bias = self.bias(layer)
        stored = []
        for kind, value in zip(("int4", "scale", "zero_point"), blocks.packed(), strict=True):
            stored.append(self.writer.constant(f"{layer.weight}_{kind}", value))
        outputs, width = layer.rows.shape
        output = node.output[0]
        added = layer.op == "Gemm" and bool(bias.any())
        product = output
        if added:
            product = self.writer.free(f"{output}_product")
        self.writer.node(
            "MatMulNBits", [layer.input, *stored], [product], f"{node.name}_MatMulNBits",
            domain=MICROSOFT, K=width, N=outputs, bits=4, block_size=blocks.integers.shape[-1],
            accuracy_level=FLOAT32,
        )  # fmt: skip
        if added:
            addend = self.writer.constant(f"{layer.name}_bias", bias)
            self.writer.node("Add", [product, addend], [output], f"{node.name}_Add")


# Writer of each mode, and of embedding tables, in the order in which a graph of several forms is
# written.
WRITERS: dict[str, type[GraphWriter]] = {
    "dynamic": DynamicGraphWriter,
    "weights": WeightOnlyGraphWriter,
    "table": WeightOnlyGraphWriter,
}
