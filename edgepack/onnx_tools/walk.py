"""Traversal of a graph with its subgraphs: the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Spellings of the domain of ONNX's own operators."""


class Named(Protocol):
    """Value, tensor or node of a graph."""

    name: str


Item = TypeVar("Item", bound=Named)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the subgraphs of a node, without those nested in them."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.g
        yield from item.graphs


def walk_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the graph and every subgraph of its nodes, depth first."""
    # Of If { then: Loop { body } else } these are the graph, `then`, the body of Loop and `else`.
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from walk_graphs(inner)


def walk_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield every node of the graph and of its subgraphs."""
    for inner in walk_graphs(graph):
        yield from inner.node


def with_nested(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes, each followed by those of its subgraphs."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from with_nested(inner.node)


def model_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node of a model, those of its functions included."""
    yield from walk_nodes(model.graph)
    for function in model.functions:
        yield from with_nested(function.node)


def nodes_of(graph: GraphProto, *kinds: str) -> Iterator[NodeProto]:
    """Yield the nodes of some types, subgraphs included."""
    for node in walk_nodes(graph):
        if node.op_type in kinds:
            yield node


def standard_operators(graph: GraphProto) -> list[str]:
    """Return the types of all nodes of ONNX's own domain, subgraphs included, in order."""
    return sorted({node.op_type for node in walk_nodes(graph) if is_standard(node)})


def names_of(items: Iterable[Named]) -> set[str]:
    """Return the names of values, tensors or nodes."""
    return {item.name for item in items}


def by_name(items: Iterable[Item]) -> dict[str, Item]:
    """Return values, tensors or nodes by name; of several with one name, the last."""
    # `by_name(graph.initializer)["conv1.weight"]` is a tensor.
    return {item.name: item for item in items}


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the inputs of a graph that callers feed.

    Inputs with an initializer are an old way to write weights.
    """
    initialized = names_of(graph.initializer)
    return [value for value in graph.input if value.name not in initialized]


def used_names(graph: GraphProto) -> set[str]:
    """Return the names of all values that a node or a graph output reads, subgraphs included."""
    # A branch of an If may return a value of the graph around it that none of its nodes reads.
    names: set[str] = set()
    for inner in walk_graphs(graph):
        for node in inner.node:
            names.update(node.input)
        names |= names_of(inner.output)
    return names


def captured_names(node: NodeProto) -> Iterator[str]:
    """Yield the names that the subgraphs of a node may read from the graph around it."""
    # Values that a subgraph computes itself are included: no outer tensor has their names.
    for graph in subgraphs(node):
        for inner in walk_graphs(graph):
            for reader in inner.node:
                yield from filter(None, reader.input)
            for value in inner.output:
                yield value.name


def count_readers(graph: GraphProto) -> Counter[str]:
    """Count the inputs of nodes that read each value, subgraphs included."""
    readers: Counter[str] = Counter()
    for node in walk_nodes(graph):
        readers.update(node.input)
    return readers


def is_standard(node: NodeProto) -> bool:
    """Return True if a node's operator is one of ONNX's own."""
    return node.domain in DEFAULT_DOMAINS
