"""Emit dynamic int8: activations are quantized at run time, each tensor by its own range.

A product becomes DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which onnxruntime fuses:
into DynamicQuantizeMatMul if one layer reads a tensor, otherwise into one MatMulIntegerToFloat for
each layer behind a shared quantization. An LSTM becomes `com.microsoft`'s
DynamicQuantizeLSTM, which quantizes the input at once and the state at every step.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgepack.onnx_tools.view import GraphView
from edgepack.onnx_tools.writer import MICROSOFT
from edgepack.passes.quantize.dynamic_and_weight_only.constants import Choice, Constant
from edgepack.passes.quantize.dynamic_and_weight_only.integer_graph import (
    Integers,
    IntegerWeights,
    WeightEmitter,
)
from edgepack.passes.quantize.layers import Layer

# Number of inputs of an LSTM, before those that its quantized form appends: X, W, R, B,
# sequence_lens, initial_h, initial_c, P.
LSTM_INPUTS = 8
# Attributes that the quantized form does not have; layouts other than 0 were rejected earlier.
LSTM_ONLY = ("layout",)


class DynamicEmitter(WeightEmitter):
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
        sums, real, unit = (writer.free(f"{output}_{kind}") for kind in ("sums", "real", "unit"))
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
            names = [
                self.writer.free(f"{name}_{kind}") for kind in ("quantized", "scale", "zero_point")
            ]
            self.writer.node(
                "DynamicQuantizeLinear", [name], names, f"{name}_DynamicQuantizeLinear"
            )
            self._read[name] = (names[0], names[1], names[2])
        return self._read[name]
