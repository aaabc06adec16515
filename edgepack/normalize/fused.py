"""onnxruntime's fused layers, split into the operators of ONNX that they were made of.

A file that onnxruntime saved after optimizing it holds FusedConv instead of Conv and Relu. No pass
knows those, and TensorRT does not either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgepack.normalize.order import walk_graphs

DOMAIN = "com.microsoft"

# Activations that FusedConv and FusedGemm hold, and the attributes that take their parameters.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "Clip": (),
}  # fmt: skip
_FUSED_ATTRIBUTES = frozenset(
    {"activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma"}
)


def split_fused(model: Any) -> tuple[str, ...]:
    """Split FusedConv, FusedGemm and FusedMatMul, in place, wherever ONNX can express them.

    Returns:
        The operators of the nodes that were split, one entry for each node.
    """
    writer = _Writer(model)
    for graph in walk_graphs(model.graph):
        writer.rewrite(graph)
    if not any(node.domain == DOMAIN for graph in walk_graphs(model.graph) for node in graph.node):
        entries = [entry for entry in model.opset_import if entry.domain != DOMAIN]
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        del model.opset_import[:]
        model.opset_import.extend(copies)
    return tuple(writer.split)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


class _Writer:
    def __init__(self, model: Any) -> None:
        self.split: list[str] = []
        self._taken = {name for g in walk_graphs(model.graph) for n in g.node for name in n.output}
        self._taken |= {tensor.name for g in walk_graphs(model.graph) for tensor in g.initializer}
        self._taken |= {value.name for value in model.graph.input}
        self._ranks = _ranks(model)

    def rewrite(self, graph: Any) -> None:
        """Replace the fused nodes of one graph."""
        rules: dict[str, Callable[[Any, Any], list[Any] | None]] = {
            "FusedConv": self._convolution,
            "FusedGemm": self._gemm,
            "FusedMatMul": self._product,
        }
        nodes = []
        for node in graph.node:
            fused = node.domain == DOMAIN and node.op_type in rules
            parts = rules[node.op_type](graph, node) if fused else None
            if parts is not None:
                self.split.append(str(node.op_type))
            nodes += [node] if parts is None else parts
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)

    def _name(self, stem: str) -> str:
        while stem in self._taken:
            stem += "_"
        self._taken.add(stem)
        return stem

    def _convolution(self, graph: Any, node: Any) -> list[Any] | None:
        attributes = _attributes(node)
        parameters = list(attributes.get("activation_params", ()))
        return self._layer(graph, node, "Conv", parameters)

    def _gemm(self, graph: Any, node: Any) -> list[Any] | None:
        attributes = _attributes(node)
        names = ("activation_alpha", "activation_beta")
        parameters = [attributes[name] for name in names if name in attributes]
        return self._layer(graph, node, "Gemm", parameters)

    def _layer(self, graph: Any, node: Any, kind: str, parameters: list[float]) -> list[Any] | None:
        """The layer, the sum with a fourth input (FusedConv's Z), and the activation."""
        from onnx import helper

        attributes = _attributes(node)
        activation = attributes.get("activation", b"").decode()
        if activation and activation not in _ACTIVATIONS:
            return None
        plain = {k: v for k, v in attributes.items() if k not in _FUSED_ATTRIBUTES}
        parts = [helper.make_node(kind, node.input[:3], node.output, name=node.name, **plain)]
        if len(node.input) > 3 and node.input[3]:
            total = [self._chain(parts, "sum"), node.input[3]]
            parts.append(helper.make_node("Add", total, node.output, name=f"{node.name}/Add"))
        if activation:
            before = self._chain(parts, "linear")
            parts.append(self._activation(graph, node, activation, parameters, before))
        return parts

    def _chain(self, parts: list[Any], suffix: str) -> str:
        """Give the last part's output a name of its own, for the next part to read."""
        name = self._name(f"{parts[-1].output[0]}_{suffix}")
        parts[-1].output[0] = name
        return name

    def _activation(
        self, graph: Any, node: Any, kind: str, parameters: list[float], before: str
    ) -> Any:
        from onnx import helper, numpy_helper

        inputs = [before]
        if kind == "Clip":
            for bound in parameters:
                inputs.append(self._name(f"{node.output[0]}_bound"))
                graph.initializer.append(numpy_helper.from_array(np.float32(bound), inputs[-1]))
        values = dict(zip(_ACTIVATIONS[kind], parameters, strict=False))
        return helper.make_node(kind, inputs, node.output, name=f"{node.name}/{kind}", **values)

    def _product(self, graph: Any, node: Any) -> list[Any] | None:
        """alpha * A' B', where each operand is transposed in its last two axes or as it is."""
        from onnx import helper, numpy_helper

        attributes = _attributes(node)
        if attributes.get("transBatchA") or attributes.get("transBatchB"):
            return None
        parts, operands = [], list(node.input)
        for slot, flag in enumerate(("transA", "transB")):
            rank = self._ranks.get(operands[slot])
            if not attributes.get(flag):
                continue
            if rank is None:
                return None
            if rank > 1:
                perm = [*range(rank - 2), rank - 1, rank - 2]
                turned = self._name(f"{node.output[0]}_operand")
                parts.append(helper.make_node("Transpose", [operands[slot]], [turned], perm=perm))
                operands[slot] = turned
        parts.append(helper.make_node("MatMul", operands, node.output, name=node.name))
        alpha = attributes.get("alpha", 1.0)
        if alpha != 1.0:
            scale = self._name(f"{node.output[0]}_alpha")
            graph.initializer.append(numpy_helper.from_array(np.float32(alpha), scale))
            scaled = [self._chain(parts, "product"), scale]
            parts.append(helper.make_node("Mul", scaled, node.output, name=f"{node.name}/Mul"))
        return parts


def _ranks(model: Any) -> dict[str, int]:
    """Numbers of axes by name, as far as onnx infers them."""
    import onnx
    import onnx.shape_inference

    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model
    for graph in walk_graphs(inferred.graph):
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.tensor_type.HasField("shape"):
                ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks
