"""A graph's edges, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


class GraphView:
    """Who makes and who reads every tensor of a graph. Read-only: build a new one after edits."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.graph = graph
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [v.name for v in graph.input if v.name not in self.initializers]
        self.outputs = {value.name for value in graph.output}
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
            self.captured.update(_captured(node))
        self.ranks = _ranks(model)

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer that cannot be fed, or None."""
        tensor = self.initializers.get(name)
        if tensor is None or any(value.name == name for value in self.graph.input):
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def is_constant(self, name: str) -> bool:
        """Whether a name is an initializer that cannot be fed."""
        return name in self.initializers and all(v.name != name for v in self.graph.input)

    def only_reader(self, name: str) -> int | None:
        """The one node that reads a tensor, where nothing else sees it."""
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs or name in self.captured:
            return None
        return readers[0]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or the default."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for item in node.attribute:
        for graph in [item.g] if item.HasField("g") else list(item.graphs):
            for inner in graph.node:
                yield from (name for name in inner.input if name)
                yield from _captured(inner)
            yield from (value.name for value in graph.output)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """The rank of every tensor for which shape inference finds one."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    # Stale entries contradict what inference finds.
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=False)
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    graph = inferred.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            ranks[value.name] = len(kind.shape.dim)
    return ranks
