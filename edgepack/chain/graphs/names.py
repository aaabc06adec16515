"""Names in a graph: those that a user calls nodes by, and those that are free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgepack.chain.graphs.view import GraphView
from edgepack.errors import ChainError
from edgepack.spec.document import nearest


def check_names(names: Iterable[str], known: Sequence[str], code: str, precision: str) -> None:
    """Raise ChainError for a node to be kept in a precision that is not in the graph.

    Args:
        names: of nodes that are to stay as they are.
        known: of all nodes of the graph.
        code: of the error.
        precision: in which they stay, in a word.
    """
    for name in names:
        if name not in known:
            # Without a near name nothing is listed: thousands, in a real graph.
            near = nearest(name, known)
            raise ChainError(
                code,
                f"the node {name!r} that is to stay {precision} is not in the graph",
                why=f"the graph has {len(known)} nodes, none of that name"
                + (f"; did you mean {near!r}?" if near else ""),
                hint="the names are those of the ONNX graph after export and simplification",
            )


def unused(name: str, taken: set[str]) -> str:
    """The name, with a tail where it is taken; from now on it is."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


class FreeNames:
    """Names that nothing of a graph has, for what is written into it."""

    def __init__(self, view: GraphView) -> None:
        self._tensors = {t for node in view.nodes for t in (*node.input, *node.output)}
        self._tensors |= {*view.initializers, *view.inputs, *view.captured}
        self._nodes = {node.name for node in view.nodes}

    def tensor(self, name: str) -> str:
        """A tensor's name: this one where it can be."""
        return unused(name, self._tensors)

    def node(self, name: str) -> str:
        """A node's name: this one where it can be."""
        return unused(name, self._nodes)
