"""Topological order of a graph's nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.onnx_tools.copies import replace_items
from edgepack.onnx_tools.walk import captured_names, walk_graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def sort_nodes(model: ModelProto) -> int:
    """Sort the nodes of a model topologically, in place; sorted graphs do not change.

    Returns:
        The number of graphs, subgraphs included, that were out of order. A graph with a cycle
        does not change.
    """
    return sum(map(_sort, walk_graphs(model.graph)))


def _reads(node: NodeProto) -> set[str]:
    """Return the names that a node reads, including reads of outer values by its subgraphs."""
    return {*filter(None, node.input), *captured_names(node)}


def _sort(graph: GraphProto) -> bool:
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        producers.update(dict.fromkeys(filter(None, node.output), index))
    # For each node, the indices of the nodes that it depends on. In a sorted graph all are smaller
    # than the node's own, as in [{}, {0}, {0, 1}].
    sources: list[set[int]] = []
    is_sorted = True
    for index, node in enumerate(graph.node):
        inputs = {producers[name] for name in producers.keys() & _reads(node)}
        is_sorted = is_sorted and max(inputs, default=-1) < index
        sources.append(inputs)
    if is_sorted:
        return False
    order = _order(sources)
    if order is None:
        return False
    replace_items(graph.node, [graph.node[index] for index in order])
    return True


def _order(sources: list[set[int]]) -> list[int] | None:
    """Return indices in topological order, None on a cycle.

    Each node directly follows its dependencies: [{1}, set(), {0}] gives [1, 0, 2].
    """
    # Depth first with an explicit stack, since a graph may be deeper than Python can recurse.
    order: list[int] = []
    state = [0] * len(sources)  # 0: not visited, 1: on the path, 2: placed
    for start in range(len(sources)):
        path = [start]
        while path:
            index = path[-1]
            if state[index] == 2:
                path.pop()
                continue
            state[index] = 1
            pending = []
            for source in sorted(sources[index], reverse=True):
                if state[source] == 1:
                    return None
                if state[source] == 0:
                    pending.append(source)
            if not pending:
                state[index] = 2
                order.append(index)
                path.pop()
            path.extend(pending)
    return order
