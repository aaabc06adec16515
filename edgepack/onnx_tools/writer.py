"""Write a graph node by node, with new constants under unused names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgepack.onnx_tools.clean import remove_unused_initializers
from edgepack.onnx_tools.names import FreeNames
from edgepack.onnx_tools.view import GraphView

MICROSOFT = "com.microsoft"


class Writer:
    """Collects nodes and constants that replace those of a model.

    Args:
        model: its inputs, outputs and constants are copied.
        view: of that model.
    """

    def __init__(self, model: onnx.ModelProto, view: GraphView) -> None:
        self._result = onnx.ModelProto()
        self._result.CopyFrom(model)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._names = FreeNames(view)

    def keep(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Append a copy of a node of the model, and return it for modification."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        self._nodes.append(copy)
        return copy

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> None:
        """Append a node; its name gets a suffix if another node has it."""
        name = self._names.node(name)
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))

    def free(self, name: str) -> str:
        """Return an unused name for a tensor, this one if possible."""
        return self._names.tensor(name)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Store a constant and return its name; equal values of one name are stored once."""
        # Layers may share weights and have different scales, so the value is part of the key.
        key = (name, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, self.free(name))
        return str(self._constants[key].name)

    def model(self) -> onnx.ModelProto:
        """Return the model with these nodes, without the constants that none of them reads."""
        graph = self._result.graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._constants.values())
        remove_unused_initializers(graph)
        # The domain of onnxruntime's own operators is declared only if one of them is used.
        domains = {node.domain for node in self._nodes}
        declared = {opset.domain for opset in self._result.opset_import}
        if MICROSOFT in domains - declared:
            self._result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return self._result
