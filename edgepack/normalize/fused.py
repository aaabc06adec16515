"""Splitting of onnxruntime's fused layers into standard operators of ONNX.

A file that onnxruntime optimized and saved has a FusedConv instead of a Conv and a Relu. Neither
the passes nor TensorRT support such operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.onnx_tools.attributes import attributes as read_attributes
from edgepack.onnx_tools.copies import replace_items
from edgepack.onnx_tools.names import unused, value_names
from edgepack.onnx_tools.walk import walk_graphs, walk_nodes
from edgepack.onnx_tools.writer import MICROSOFT

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Activations of FusedConv and FusedGemm, and the attributes that take their parameters.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "Clip": (),
}  # fmt: skip
_FUSED_ATTRIBUTES = frozenset(
    {"activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma"}
)


def split_fused(model: ModelProto) -> tuple[str, ...]:
    """Split FusedConv, FusedGemm and FusedMatMul in place, if ONNX can express them.

    Returns:
        The operators of the nodes that were split, one entry for each node.
    """
    writer = _Writer(model)
    for graph in walk_graphs(model.graph):
        writer.rewrite(graph)
    # The import of the domain goes with its last node.
    if MICROSOFT not in {node.domain for node in walk_nodes(model.graph)}:
        others = [entry for entry in model.opset_import if entry.domain != MICROSOFT]
        replace_items(model.opset_import, others)
    return tuple(writer.split)


class _Writer:
    def __init__(self, model: ModelProto) -> None:
        self.split: list[str] = []
        self._names = value_names(model.graph)
        self._ranks = _ranks(model)

    def rewrite(self, graph: GraphProto) -> None:
        """Replace the fused nodes of one graph."""
        rules: dict[str, Callable[[GraphProto, NodeProto], list[NodeProto] | None]] = {
            "FusedConv": self._convolution,
            "FusedGemm": self._gemm,
            "FusedMatMul": self._product,
        }
        nodes = []
        for node in graph.node:
            parts = None
            if node.domain == MICROSOFT and node.op_type in rules:
                parts = rules[node.op_type](graph, node)
            # A rule returns None for a node that has no equivalent in ONNX.
            if parts is None:
                nodes.append(node)
            else:
                self.split.append(str(node.op_type))
                nodes += parts
        replace_items(graph.node, nodes)

    def _unused_name(self, stem: str) -> str:
        return unused(stem, self._names)

    def _convolution(self, graph: GraphProto, node: NodeProto) -> list[NodeProto] | None:
        attributes = read_attributes(node)
        parameters = list(attributes.get("activation_params", ()))
        return self._layer(graph, node, "Conv", parameters)

    def _gemm(self, graph: GraphProto, node: NodeProto) -> list[NodeProto] | None:
        attributes = read_attributes(node)
        # FusedGemm stores alpha = 0.1 of a LeakyRelu as activation_alpha.
        parameters: list[float] = []
        for name in ("activation_alpha", "activation_beta"):
            if name in attributes:
                parameters.append(attributes[name])
        return self._layer(graph, node, "Gemm", parameters)

    def _layer(
        self, graph: GraphProto, node: NodeProto, kind: str, parameters: list[float]
    ) -> list[NodeProto] | None:
        """Split a layer into layer, sum with a fourth input (FusedConv's Z) and activation.

        For example FusedConv(x, W, b, z; Relu) -> y becomes Conv(x, W, b) -> y_sum,
        Add(y_sum, z) -> y_linear, Relu(y_linear) -> y.
        """
        from onnx import helper

        attributes = read_attributes(node)
        activation = attributes.get("activation", b"").decode()
        if activation and activation not in _ACTIVATIONS:
            return None
        plain = dict(attributes)
        for name in _FUSED_ATTRIBUTES:
            plain.pop(name, None)
        parts = [helper.make_node(kind, node.input[:3], node.output, name=node.name, **plain)]
        if len(node.input) > 3 and node.input[3]:
            total = [self._chain(parts, "sum"), node.input[3]]
            parts.append(helper.make_node("Add", total, node.output, name=f"{node.name}/Add"))
        if activation:
            before = self._chain(parts, "linear")
            parts.append(self._activation(graph, node, activation, parameters, before))
        return parts

    def _chain(self, parts: list[NodeProto], suffix: str) -> str:
        """Rename the output of the last part and return the name, as the input of the next part."""
        name = self._unused_name(f"{parts[-1].output[0]}_{suffix}")
        parts[-1].output[0] = name
        return name

    def _activation(
        self, graph: GraphProto, node: NodeProto, kind: str, parameters: list[float], before: str
    ) -> Any:
        from onnx import helper, numpy_helper

        inputs = [before]
        # Clip takes its bounds as inputs, all others take their parameters as attributes.
        if kind == "Clip":
            for bound in parameters:
                inputs.append(self._unused_name(f"{node.output[0]}_bound"))
                graph.initializer.append(numpy_helper.from_array(np.float32(bound), inputs[-1]))
        values = dict(zip(_ACTIVATIONS[kind], parameters, strict=False))
        return helper.make_node(kind, inputs, node.output, name=f"{node.name}/{kind}", **values)

    def _product(self, graph: GraphProto, node: NodeProto) -> list[NodeProto] | None:
        """Split alpha * A' B', in which the last two axes of each operand may be transposed."""
        from onnx import helper, numpy_helper

        attributes = read_attributes(node)
        if attributes.get("transBatchA") or attributes.get("transBatchB"):
            return None
        parts, operands = [], list(node.input)
        for slot, flag in enumerate(("transA", "transB")):
            rank = self._ranks.get(operands[slot])
            if not attributes.get(flag):
                continue
            # Without a rank the permutation is unknown; a vector has no two axes to swap.
            if rank is None:
                return None
            if rank > 1:
                perm = [*range(rank - 2), rank - 1, rank - 2]
                turned = self._unused_name(f"{node.output[0]}_operand")
                parts.append(helper.make_node("Transpose", [operands[slot]], [turned], perm=perm))
                operands[slot] = turned
        parts.append(helper.make_node("MatMul", operands, node.output, name=node.name))
        alpha = attributes.get("alpha", 1.0)
        if alpha != 1.0:
            scale = self._unused_name(f"{node.output[0]}_alpha")
            graph.initializer.append(numpy_helper.from_array(np.float32(alpha), scale))
            scaled = [self._chain(parts, "product"), scale]
            parts.append(helper.make_node("Mul", scaled, node.output, name=f"{node.name}/Mul"))
        return parts


def _ranks(model: ModelProto) -> dict[str, int]:
    """Map names of values to their ranks, as far as onnx infers them."""
    import onnx
    import onnx.shape_inference

    # The rank of (2, 3, 4) is 3.
    ranks: dict[str, int] = {}
    for tensor in model.graph.initializer:
        ranks[tensor.name] = len(tensor.dims)
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model
    for graph in walk_graphs(inferred.graph):
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.tensor_type.HasField("shape"):
                ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks
