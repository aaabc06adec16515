"""Emit the Q/DQ graph: one Q/DQ pair per quantized tensor, and s8 weights behind a DQ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.view import GraphView
from edgepack.onnx_tools.writer import Writer
from edgepack.passes.quantize.layers import Layer, by_added_bias, by_index
from edgepack.passes.quantize.scheme import Affine, round_to_half
from edgepack.passes.quantize.static.placement import Placement
from edgepack.passes.quantize.weights.int8 import Quantized


def write_qdq_graph(
    model: onnx.ModelProto,
    view: GraphView,
    placement: Placement,
    quantization: Mapping[str, Affine],
    weights: Mapping[int, Quantized],
) -> onnx.ModelProto:
    """Return the quantized model.

    Args:
        model: float32, prepared.
        view: of that model.
        placement: nodes that become integer.
        quantization: of every root tensor.
        weights: of every layer, by the node's index.
    """
    return _QdqGraphWriter(model, view, placement, quantization, weights).model()


class _QdqGraphWriter:
    def __init__(
        self,
        model: onnx.ModelProto,
        view: GraphView,
        placement: Placement,
        quantization: Mapping[str, Affine],
        weights: Mapping[int, Quantized],
    ) -> None:
        self.view, self.placement = view, placement
        self.quantization, self.weights = quantization, weights
        self.writer = Writer(model, view)
        # By the preferred name; the stored name differs if the graph uses it already.
        self.constants: dict[str, onnx.TensorProto] = {}
        # Scale and zero point by root; apart from the constants, as a layer may have a root's name.
        self.parameters: dict[str, tuple[onnx.TensorProto, onnx.TensorProto]] = {}
        # Quantized tensor -> output of its DQ.
        self.dequantized: dict[str, str] = {}
        self.layers, self.added = by_index(placement.layers), by_added_bias(placement.layers)
        # Input of an absorbed clamp -> its output, which the layer before it now writes.
        self.clamped: dict[str, str] = {}
        for index, name in placement.clamps.items():
            self.clamped[view.nodes[index].input[0]] = name
        self.stored: dict[tuple[str, bool, bytes, bytes], str] = {}

    def model(self) -> onnx.ModelProto:
        for name in self.view.inputs:
            if name in self.placement.points:
                self._quantize(name, name)
        # Example: Conv -> Relu -> Conv becomes Conv -> Q -> DQ -> Conv. The Relu is absorbed, and
        # the Q behind the first layer has the name and the range of the Relu's output.
        for index, node in enumerate(self.view.nodes):
            if index in self.placement.clamps:
                continue
            copy = copied(node)
            for slot, name in enumerate(copy.input):
                if (index, name) in self.placement.reads:
                    copy.input[slot] = self.dequantized[name]
            self._rewrite(index, copy)
            self._append(copy)
        initializers = self.writer.result.graph.initializer
        initializers.extend(self.constants.values())
        for pair in self.parameters.values():
            initializers.extend(pair)
        return self.writer.model()

    def _rewrite(self, index: int, node: onnx.NodeProto) -> None:
        if index in self.layers:
            self._write_weights(self.layers[index], node)
        elif index in self.added:
            self._correct_added(self.added[index], node)
        elif index in self.placement.arithmetic and node.op_type == "Relu":
            # Relu has no integer kernel of its own; LeakyRelu has one, and slope 0 makes it a Relu.
            node.op_type = "LeakyRelu"
            node.attribute.append(helper.make_attribute("alpha", 0.0))

    def _correct_added(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Replace the bias in the Add behind a MatMul by the corrected one."""
        name, weights = f"{layer.name}_bias", self.weights[layer.index]
        bias = weights.real_bias
        if weights.bias is None:
            bias = round_to_half(bias)
        self._store_constant(name, bias.astype(np.float32))
        for slot, old in enumerate(node.input):
            if old == layer.bias_name:
                node.input[slot] = self.constants[name].name

    def _append(self, node: onnx.NodeProto) -> None:
        """Append a node, and Q and DQ behind its quantized outputs."""
        pairs = []
        for slot, output in enumerate(node.output):
            name = self.clamped.get(output, output)
            if name not in self.placement.points:
                continue
            # A tensor that is visible outside is the DQ's output, so the DQ takes its name.
            is_rounded = name in self.placement.rounded
            node.output[slot] = name
            if is_rounded:
                node.output[slot] = self.writer.free(f"{name}_real")
            pairs.append((name, node.output[slot]))
        self.writer.append(node)
        for name, real in pairs:
            self._quantize(name, real)

    def _quantize(self, name: str, real: str) -> None:
        """Append Q and DQ behind the tensor `real`, the float form of `name`.

        Example: y -> y_QuantizeLinear -> y_quantized -> y_DequantizeLinear -> y_dequantized.
        """
        root = self.placement.points[name]
        scale, zero_point = self._store_parameters(root)
        stored = self.writer.free(f"{name}_quantized")
        back = name if real != name else self.writer.free(f"{name}_dequantized")
        for op, source, output in (
            ("QuantizeLinear", real, stored),
            ("DequantizeLinear", stored, back),
        ):
            self.writer.node(op, [source, scale, zero_point], [output], f"{name}_{op}")
        self.dequantized[name] = back

    def _store_parameters(self, root: str) -> tuple[str, str]:
        """Return the names of a root's scale and zero point."""
        if root not in self.parameters:
            affine = self.quantization[root]
            value = np.array(affine.scale, dtype=np.float32)
            self.parameters[root] = (
                numpy_helper.from_array(value, self.writer.free(f"{root}_scale")),
                numpy_helper.from_array(affine.stored_zero, self.writer.free(f"{root}_zero_point")),
            )
        scale, zero_point = self.parameters[root]
        return scale.name, zero_point.name

    def _write_weights(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Store a layer's integers and make its node read them."""
        weights = self.weights[layer.index]
        read = (layer.weight, layer.transposed, weights.scale.tobytes(), weights.rows.tobytes())
        if read not in self.stored:
            # The first reader of shared weights stores them for all readers with the same integers.
            bases = set(self.stored.values())
            base = layer.weight
            if base in bases:
                base = f"{layer.weight}_{layer.name}"
            self.stored[read] = base
            self._store_constant(f"{base}_quantized", layer.stored(weights.rows))
            self._store_constant(f"{base}_scale", weights.scale.astype(np.float32))
        base = self.stored[read]
        node.input[1] = self._dequantize_constant(base, layer.axis, f"{layer.name}_weight")
        if layer.op == "MatMul":
            return
        # Bias correction may add a bias to a layer without one.
        bias = weights.real_bias if weights.bias is None else weights.bias
        if layer.bias_name is not None or bias.any():
            del node.input[2:]
            node.input.append(self._store_bias(layer, weights))
        if layer.op == "Gemm":
            # Alpha and beta are folded into the integers.
            for item in node.attribute:
                if item.name in ("alpha", "beta"):
                    item.f = 1.0

    def _store_bias(self, layer: Layer, weights: Quantized) -> str:
        """Return the name of a layer's bias: float, or int32 behind a DQ."""
        name = layer.bias_name or f"{layer.name}_bias"
        if weights.bias is None:
            self._store_constant(
                f"{layer.name}_bias", round_to_half(weights.real_bias).astype(np.float32)
            )
            return str(self.constants[f"{layer.name}_bias"].name)
        if f"{name}_quantized" in self.constants:
            # Layers that share a bias need a copy each, since its scale depends on the layer.
            name = f"{layer.name}_bias"
        # The scale of a bias is that of the products it is added to.
        source = self.quantization[self.placement.points[layer.input]]
        self._store_constant(f"{name}_quantized", weights.bias)
        self._store_constant(
            f"{name}_scale", np.float32(source.scale) * weights.scale.astype(np.float32)
        )
        return self._dequantize_constant(name, 0, f"{layer.name}_bias")

    def _dequantize_constant(self, base: str, axis: int, output: str) -> str:
        """Append the DQ of a constant and return the name of its output."""
        output = self.writer.free(f"{output}_dequantized")
        stored = self.constants[f"{base}_quantized"]
        # Layers of one size share an array of zeros.
        zeros = np.zeros(stored.dims[axis], dtype=helper.tensor_dtype_to_np_dtype(stored.data_type))
        zero_point = f"zeros_{zeros.dtype}_{len(zeros)}"
        if zero_point not in self.constants:
            self._store_constant(zero_point, zeros)
        keys = (f"{base}_quantized", f"{base}_scale", zero_point)
        inputs = [str(self.constants[key].name) for key in keys]
        title = output.removesuffix("_dequantized") + "_DequantizeLinear"
        self.writer.node("DequantizeLinear", inputs, [output], title, axis=axis)
        return output

    def _store_constant(self, name: str, value: np.ndarray) -> None:
        self.constants[name] = numpy_helper.from_array(value, self.writer.free(name))
