"""Edges of a graph, by the names of tensors."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from edgepack.onnx_tools.attributes import attribute as attribute
from edgepack.onnx_tools.copies import copied
from edgepack.onnx_tools.operators import operator
from edgepack.onnx_tools.walk import by_name, fed_inputs, names_of
from edgepack.onnx_tools.walk import captured_names as captured_names

# Sizes of a tensor's axes: numbers, symbols, None where nothing is known.
Shape = tuple[int | str | None, ...]


class GraphView:
    """Producers and readers of every tensor of a graph. Read-only: make a new one after edits."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.graph = graph
        self.nodes = list(graph.node)
        # For x -> Conv -> y -> Relu -> z the producer of y is 0 and its only reader 1.
        self.initializers = by_name(graph.initializer)
        self.inputs = [value.name for value in fed_inputs(graph)]
        self.outputs = names_of(graph.output)
        # Inputs of any kind: an initializer among them can be overridden, so it is not a constant.
        self._declared = names_of(graph.input)
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        # Names that the subgraphs of If, Loop and Scan take from this graph.
        self.captured: set[str] = set()
        for index, node in enumerate(self.nodes):
            for name in node.output:
                self.producer[name] = index
            for name in dict.fromkeys(node.input):
                if name:
                    self.readers.setdefault(name, []).append(index)
            self.captured.update(captured_names(node))
        self.shapes, self.types = _inferred(model)
        self.ranks: dict[str, int] = {}
        for name, shape in self.shapes.items():
            self.ranks[name] = len(shape)

    def constant(self, name: str) -> np.ndarray | None:
        """Return the value of an initializer that cannot be fed; None for any other tensor."""
        tensor = self.initializers.get(name)
        if tensor is None or name in self._declared:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def is_constant(self, name: str) -> bool:
        """Return True for an initializer that cannot be fed."""
        return name in self.initializers and name not in self._declared

    def only_reader(self, name: str) -> int | None:
        """Return the only reader of a tensor; None if there are more, or the graph returns it."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs or name in self.captured:
            return None
        return readers[0]


def list_weights(view: GraphView) -> list[str]:
    """Return the names of the constant weights of layers, each once, in the order of the nodes.

    Biases, the constants of other operators and initializers that can be fed are not among them.
    """
    # Of Conv(x, kernel, bias) and Mul(y, 255) this is kernel.
    names: dict[str, None] = {}
    for node in view.nodes:
        for slot in operator(node.op_type).weights:
            if slot < len(node.input) and view.is_constant(node.input[slot]):
                names[node.input[slot]] = None
    return list(names)


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Infer shapes and element types; tensors of unknown rank are left out, unknown sizes None."""
    bare = copied(model)
    # Stale entries contradict what inference finds.
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=False)
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        types[tensor.name] = int(tensor.data_type)
    graph = inferred.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        types[value.name] = kind.elem_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            # ("batch", 3, None): a symbol, a number, and a size that nothing is known of.
            shapes[value.name] = tuple(map(_size, kind.shape.dim))
    return shapes, types


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
