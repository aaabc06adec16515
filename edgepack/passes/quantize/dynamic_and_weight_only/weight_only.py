"""Emit integer weights with float arithmetic: a quarter or an eighth of the file size.

Eight-bit weights are converted to float32 once, when onnxruntime loads the model. Four-bit weights
stay integers in `com.microsoft`'s MatMulNBits, which multiplies by float32 activations (accuracy
level 1; at level 4 it would round them to int8 on CPUs with kernels for that).
"""

from __future__ import annotations

import numpy as np
import onnx

from edgepack.onnx_tools.writer import MICROSOFT
from edgepack.passes.quantize.dynamic_and_weight_only.integer_graph import WeightEmitter
from edgepack.passes.quantize.layers import Layer
from edgepack.passes.quantize.weights.int4 import Blocks

FLOAT32 = 1


class WeightsEmitter(WeightEmitter):
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
        names = {
            constant.slot: self.real(
                constant.name, constant.stored(integers.rows), constant.spread(integers.scale)
            )
            for constant, integers in pairs
        }
        copy = self.writer.keep(node)
        for slot, name in names.items():
            copy.input[slot] = name

    def _write_product(self, layer: Layer, node: onnx.NodeProto, blocks: Blocks) -> None:
        """Write MatMulNBits, and an Add if a Gemm has a bias."""
        bias = self.bias(layer)
        stored = [
            self.writer.constant(f"{layer.weight}_{kind}", value)
            for kind, value in zip(("int4", "scale", "zero_point"), blocks.packed(), strict=True)
        ]
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
