"""Fuse a Q/DQ graph as onnxruntime does, and count the float operators that remain."""

from __future__ import annotations

from collections import Counter

import onnx

from edgepack import files
from edgepack.onnx_tools.sessions import create_session
from edgepack.onnx_tools.walk import walk_nodes

# Operators without rounding: they move values, compare them, or compute shapes.
# fmt: off
ROUNDLESS = frozenset(
    {
        "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "DepthToSpace",
        "Equal", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Greater",
        "Identity", "Less", "Max", "MaxPool", "Min", "Not", "Or", "Pad", "Range",
        "Relu", "Reshape", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze",
        "Tile", "Transpose", "Unsqueeze", "Where",
    }
)
# Integer arithmetic that rounds once, to its output.
INTEGER = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "QGemm", "ConvInteger", "MatMulInteger",
        "MatMulIntegerToFloat",
    }
)
# fmt: on


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that onnxruntime runs, at the level that does not depend on the CPU."""
    # onnxruntime returns its optimized graph only as a file.
    with files.temporary_folder() as folder:
        path = folder / "fused.onnx"
        create_session(model, optimization="extended", save_to=path)
        return onnx.load(str(path))


def float_operators(graph: onnx.GraphProto) -> dict[str, int]:
    """Count the nodes of each operator that round in floating point, subgraphs included."""
    counts: Counter[str] = Counter()
    for node in walk_nodes(graph):
        kind = node.op_type
        if not (kind in ROUNDLESS or kind in INTEGER or kind.startswith("QLinear")):
            counts[kind] += 1
    return dict(sorted(counts.items()))
