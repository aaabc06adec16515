"""Names in a graph: of nodes that the user lists, and names that are free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from edgepack.errors import ChainError
from edgepack.onnx_tools.walk import names_of, walk_graphs
from edgepack.spec.suggestions import nearest

if TYPE_CHECKING:
    from onnx import GraphProto

    from edgepack.onnx_tools.view import GraphView


def check_names(names: Iterable[str], nodes: Sequence[str], code: str, precision: str) -> None:
    """Raise ChainError if a node to keep in a precision is not in the graph.

    Args:
        names: of the nodes to keep, as the user gave them.
        nodes: names of all nodes of the graph.
        code: of the error.
        precision: that the nodes keep, in a word.
    """
    for name in names:
        if name not in nodes:
            # Without a near name none is listed: a real graph has thousands.
            near = nearest(name, nodes)
            suggestion = f"; did you mean {near!r}?" if near else ""
            raise ChainError(
                code,
                f"the node {name!r} that is to stay {precision} is not in the graph",
                why=f"the graph has {len(nodes)} nodes, none of that name{suggestion}",
                hint="the names are those of the ONNX graph after export and simplification",
            )


def unused(name: str, used: set[str]) -> str:
    """Return the name, with underscores appended until it is free, and add it to those used."""
    # "x", "x_", "x__", ...
    while name in used:
        name += "_"
    used.add(name)
    return name


def numbered(name: str, used: set[str]) -> str:
    """Return the name, or its first free numbered form, and add it to those used."""
    # "conv", "conv_2", "conv_3", ...
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    used.add(candidate)
    return candidate


def value_names(graph: GraphProto) -> set[str]:
    """Return the names of all values that a graph and its subgraphs define."""
    names = names_of(graph.input)
    for inner in walk_graphs(graph):
        names |= names_of(inner.initializer)
        for node in inner.node:
            names.update(node.output)
    return names


def renamed(names: Iterable[str], mapping: Mapping[str, str]) -> list[str]:
    """Return names with those of a mapping replaced."""
    return [mapping.get(name, name) for name in names]


class FreeNames:
    """Free names for tensors and nodes that are added to a graph."""

    def __init__(self, view: GraphView) -> None:
        self._tensors = {*view.initializers, *view.inputs, *view.captured}
        for node in view.nodes:
            self._tensors.update(node.input, node.output)
        self._nodes = names_of(view.nodes)

    def tensor(self, name: str) -> str:
        """Return a free name for a tensor: this one if possible."""
        return unused(name, self._tensors)

    def node(self, name: str) -> str:
        """Return a free name for a node: this one if possible."""
        return unused(name, self._nodes)
