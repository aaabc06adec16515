"""Fuse a Q/DQ graph as onnxruntime does, and count the float operators that remain."""

from __future__ import annotations

from collections import Counter

import onnx

from edgepack import files
from edgepack.onnx_tools.operators import Trait, having
from edgepack.onnx_tools.sessions import create_session
from edgepack.onnx_tools.walk import walk_nodes


def fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that onnxruntime runs, at the level that does not depend on the CPU."""
    # onnxruntime returns its optimized graph only as a file.
    with files.temporary_folder() as folder:
        path = folder / "fused.onnx"
        create_session(model, optimization="extended", save_to=path)
        return onnx.load(str(path))


def count_float_operators(graph: onnx.GraphProto) -> dict[str, int]:
    """Count the nodes of each operator that round in floating point, subgraphs included."""
    precise = having(Trait.EXACT) | having(Trait.ROUNDS_ONCE)
    counts: Counter[str] = Counter()
    for node in walk_nodes(graph):
        kind = node.op_type
        if kind not in precise and not kind.startswith("QLinear"):
            counts[kind] += 1
    return dict(sorted(counts.items()))
