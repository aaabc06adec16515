"""Write a graph node by node, with new constants under unused names, and serialise models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgepack.onnx_tools.clean import remove_unused_initializers
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.names import FreeNames

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto, TensorProto

    from edgepack.onnx_tools.view import GraphView

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""


def serialised(model: ModelProto) -> bytes:
    """Return a model's bytes, equal for equal models."""
    # Without `deterministic`, protobuf may write the entries of a map in any order.
    return bytes(model.SerializeToString(deterministic=True))


class Writer:
    """Collects nodes and constants that replace those of a model.

    Attributes:
        result: the copy of the model; its nodes are those of the original until `model` is called.
        names: unused names of the graph.

    Args:
        model: its inputs, outputs and constants are copied.
        view: of that model.
    """

    def __init__(self, model: ModelProto, view: GraphView) -> None:
        self.result = copied(model)
        self.names = FreeNames(view)
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = {}

    def keep(self, node: NodeProto) -> NodeProto:
        """Append a copy of a node of the model, and return it for modification."""
        copy = copied(node)
        self.append(copy)
        return copy

    def append(self, node: NodeProto) -> None:
        """Append a node as it is."""
        self._nodes.append(node)

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> None:
        """Append a node; its name gets a suffix if another node has it."""
        from onnx import helper

        name = self.names.node(name)
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))

    def free(self, name: str) -> str:
        """Return an unused name for a tensor, this one if possible."""
        return self.names.tensor(name)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Store a constant and return its name; equal values of one name are stored once."""
        from onnx import numpy_helper

        # Layers may share weights and have different scales, so the value is part of the key.
        key = (name, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, self.free(name))
        return str(self._constants[key].name)

    def free_each(self, stem: str, *suffixes: str) -> list[str]:
        """Return a free name for each suffix: "x_scale" and "x_zero" of "x", "scale", "zero"."""
        names = []
        for suffix in suffixes:
            names.append(self.free(f"{stem}_{suffix}"))
        return names

    def model(self) -> ModelProto:
        """Return the model with these nodes, without the constants that none of them reads."""
        from onnx import helper

        graph = self.result.graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._constants.values())
        remove_unused_initializers(graph)
        # The domain of onnxruntime's own operators is declared only if one of them is used.
        opsets = self.result.opset_import
        is_used = MICROSOFT in {node.domain for node in self._nodes}
        if is_used and MICROSOFT not in {opset.domain for opset in opsets}:
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        return self.result
