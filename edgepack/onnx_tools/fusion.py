"""Fuse a Q/DQ graph as onnxruntime does, and count the float operators that remain."""

from __future__ import annotations

import onnx

from edgepack import files
from edgepack.runtime.session.onnx_session import import_engine

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
    onnxruntime = import_engine()
    with files.temporary_folder() as folder:
        path = folder / "fused.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(str(path))


def float_operators(graph: onnx.GraphProto) -> dict[str, int]:
    """Count the nodes of each operator that round in floating point, subgraphs included."""
    counts: dict[str, int] = {}
    graphs = [graph]
    while graphs:
        for node in graphs.pop().node:
            for item in node.attribute:
                graphs.extend(item.graphs)
                if item.HasField("g"):
                    graphs.append(item.g)
            kind = node.op_type
            if kind in ROUNDLESS or kind in INTEGER or kind.startswith("QLinear"):
                continue
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items()))
