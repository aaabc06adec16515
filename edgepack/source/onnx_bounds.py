"""Bound the size of an ONNX graph with unfolded functions, without unfolding them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.onnx_tools.walk import with_nested

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MAX_NODES = 2_000_000


def check_unfolded(path: Path, model: ModelProto) -> None:
    """Refuse functions that call each other until the graph has millions of nodes.

    Twenty-seven functions of two calls each, one calling the next, are 2 kB and 134 million nodes.

    Raises:
        SourceError: source-onnx-unfolds.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    # For f0 = {Add}, f1 = {f0, f0}, f2 = {f1, f1, Relu}: sizes 1, 2 and 2 + 2 + 1 = 5. The sizes
    # are added up without unfolding anything, so 134 million nodes take no longer than these.
    # Depth first, with `pending` as the stack: a function is sized after those that it calls. A
    # call of a function that is still on the stack is a recursion.
    pending = list(functions)
    unfolding: set[tuple[str, str]] = set()
    while pending:
        key = pending[-1]
        calls = [c for c in _calls(functions[key].node) if c in functions and c not in sizes]
        if key in sizes or not calls:
            sizes.setdefault(key, _size(functions[key].node, sizes))
            unfolding.discard(pending.pop())
        elif unfolding.intersection(calls):
            raise _unfolds(path, f"the function {key[1]} calls itself")
        else:
            unfolding.add(key)
            pending.extend(calls)
    count = _size(model.graph.node, sizes)
    if count > MAX_NODES:
        raise _unfolds(path, f"unfolded, it has {count:,} nodes; at most {MAX_NODES:,}")


def _size(nodes: Iterable[NodeProto], sizes: dict[tuple[str, str], int]) -> int:
    return sum(sizes.get(call, 1) for call in _calls(nodes))


def _calls(nodes: Iterable[NodeProto]) -> Iterable[tuple[str, str]]:
    """Yield domain and operator of every node, subgraphs included."""
    for node in with_nested(nodes):
        yield node.domain, node.op_type


def _unfolds(path: Path, why: str) -> SourceError:
    return SourceError(
        "source-onnx-unfolds",
        f"{path.name} has functions that unfold without bound",
        why=why,
        hint="export it again without functions; do not use a file of unknown origin",
    )
