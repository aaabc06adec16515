"""Nodes that the user calls by their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
