"""Traversal of an ONNX model with its subgraphs, and the limits of the format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgepack.errors import GraphError
from edgepack.normalize.modes import default_opset as default_opset
from edgepack.normalize.order import walk_graphs as walk_graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

PROTOBUF_LIMIT = 2**31 - 1
"""Longest protobuf message in bytes; edgepack ships the graph as one message."""

IR_VERSION = 10
"""The newest IR version that onnxruntime 1.19 reads."""

NEWEST_OPSET = 21
"""The newest default opset that onnxruntime 1.19 runs."""


def walk_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield every node of the graph and of its subgraphs."""
    for inner in walk_graphs(graph):
        yield from inner.node


def used_names(graph: GraphProto) -> set[str]:
    """Return the names of all values that a node or a graph output reads, subgraphs included."""
    names: set[str] = set()
    for inner in walk_graphs(graph):
        for node in inner.node:
            names.update(node.input)
        names.update(output.name for output in inner.output)
    return names


def count_readers(graph: GraphProto) -> Counter[str]:
    """Count the inputs of nodes that read each value, subgraphs included."""
    readers: Counter[str] = Counter()
    for node in walk_nodes(graph):
        readers.update(node.input)
    return readers


def copied(model: ModelProto) -> ModelProto:
    """Return a deep copy of the model."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def require_size(size: int, what: str) -> None:
    """Raise GraphError `graph-too-large` if `size` bytes do not fit one protobuf message."""
    if size > PROTOBUF_LIMIT:
        raise GraphError(
            "graph-too-large",
            f"{what} is too large for one ONNX file",
            why=f"{size / 1e9:.2f} GB of weights; a protobuf message holds at most 2.15 GB",
            hint="factorize or prune the model, or build a smaller variant of it",
        )
