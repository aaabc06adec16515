"""Walking an ONNX model: its graphs with their subgraphs, and the limits of its format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgepack.errors import GraphError

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes. A protobuf message cannot be longer, and edgepack ships the graph as one message."""

IR_VERSION = 10
"""The newest IR version that onnxruntime 1.19 reads."""

NEWEST_OPSET = 21
"""The newest default opset that onnxruntime 1.19 runs."""


def walk_graphs(graph: Any) -> Iterator[Any]:
    """The graph itself, then every subgraph of its nodes (`If`, `Loop`, `Scan`), depth first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from walk_graphs(inner)


def walk_nodes(graph: Any) -> Iterator[Any]:
    """Every node of the graph and of its subgraphs."""
    for inner in walk_graphs(graph):
        yield from inner.node


def used_names(graph: Any) -> set[str]:
    """The names of all values that some node or some graph output reads, subgraphs included."""
    names: set[str] = set()
    for inner in walk_graphs(graph):
        names.update(name for node in inner.node for name in node.input)
        names.update(output.name for output in inner.output)
    return names


def copied(model: Any) -> Any:
    """A deep copy of the model."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def default_opset(model: Any) -> int:
    """The version of the default operator set that the model imports, 1 where it names none."""
    versions = [
        int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")
    ]
    return max(versions, default=1)


def require_size(size: int, what: str) -> None:
    """Raise GraphError `graph-too-large` where `size` bytes do not fit one protobuf message."""
    if size > PROTOBUF_LIMIT:
        raise GraphError(
            "graph-too-large",
            f"{what} is too large for one ONNX file",
            why=f"{size / 1e9:.2f} GB of weights; a protobuf message holds at most 2.15 GB",
            hint="factorize or prune the model, or build a smaller variant of it",
        )
