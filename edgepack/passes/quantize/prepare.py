"""Check a graph and prepare it for quantization.

Constants become initializers, every node gets a name, and a graph that no mode can quantize is
rejected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper

from edgepack.errors import ChainError
from edgepack.listing import join_lines
from edgepack.normalize import integer_operators
from edgepack.onnx_tools.copies import copied, replace_items
from edgepack.onnx_tools.limits import NEWEST_IR, NEWEST_OPSET, OLDEST_OPSET, default_opset
from edgepack.onnx_tools.names import check_names, unused
from edgepack.onnx_tools.view import GraphView, attribute
from edgepack.onnx_tools.walk import names_of

FLOAT = onnx.TensorProto.FLOAT


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model that the rest of the pass can quantize.

    Constant nodes become initializers and every node has a name. Spatial means become
    GlobalAveragePool, since onnxruntime has no integer ReduceMean. Averages without padding drop an
    attribute that onnxruntime's integer kernel handles wrongly.

    Raises:
        ChainError: quantize-opset, if onnxruntime 1.19 could not load the result.
    """
    opset = default_opset(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ChainError(
            "quantize-opset",
            f"a model of opset {opset} cannot be quantized",
            why=f"per-channel Q/DQ needs opset {OLDEST_OPSET}, and the oldest supported "
            f"onnxruntime (1.19) stops at opset {NEWEST_OPSET}",
            hint=f"export with an opset of {OLDEST_OPSET} to {NEWEST_OPSET}",
        )
    # Shapes in value_info may be outdated after the changes; they are inferred again when needed.
    ready = copied(model)
    ready.ir_version = min(ready.ir_version, NEWEST_IR)
    del ready.graph.value_info[:]
    _lift_constants(ready.graph)
    _name_nodes(ready.graph)
    _pool_spatial_means(ready)
    _drop_pad_counts(ready.graph)
    return ready


def _lift_constants(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is None:
            nodes.append(node)
        else:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    replace_items(graph.node, nodes)


def _name_nodes(graph: onnx.GraphProto) -> None:
    names = names_of(graph.node)
    for index, node in enumerate(graph.node):
        if not node.name:
            node.name = unused(f"{node.op_type}_{index}", names)


def _pool_spatial_means(model: onnx.ModelProto) -> None:
    # Example: ReduceMean over the axes (2, 3) of (1, 8, 7, 7) with keepdims = 0 becomes
    # GlobalAveragePool, giving (1, 8, 1, 1), and Flatten, giving (1, 8).
    view = GraphView(model)
    nodes: list[onnx.NodeProto] = []
    for node in view.nodes:
        mean = node.op_type == "ReduceMean" and view.types.get(node.input[0]) == FLOAT
        rank = view.ranks.get(node.input[0], 0) if mean else 0
        if rank not in (3, 4, 5) or _mean_axes(view, node, rank) != set(range(2, rank)):
            nodes.append(node)
            continue
        keep = attribute(node, "keepdims", 1) == 1
        pooled = node.output[0]
        if not keep:
            pooled += "_pooled"
        nodes.append(
            helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
        )
        if not keep:
            flat = helper.make_node(
                "Flatten", [pooled], [node.output[0]], name=node.name + "_flatten", axis=1
            )
            nodes.append(flat)
    replace_items(model.graph.node, nodes)


def _drop_pad_counts(graph: onnx.GraphProto) -> None:
    """Drop `count_include_pad` from averages without padding, where it has no effect.

    If a window reaches over the end (`ceil_mode`), onnxruntime's integer kernel would count the
    values beyond it as zeros. With padding it still does.
    """
    for node in graph.node:
        if node.op_type != "AveragePool" or any(attribute(node, "pads", ())):
            continue
        if attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
            continue
        # A copy of the list, since removing while iterating would skip the next item.
        for item in list(node.attribute):
            if item.name == "count_include_pad":
                node.attribute.remove(item)


def _mean_axes(view: GraphView, node: onnx.NodeProto, rank: int) -> set[int]:
    axes = attribute(node, "axes", [])
    if len(node.input) > 1 and node.input[1]:
        # Axes are an input from opset 18 on. If they are not constant, the node stays.
        values = view.constant(node.input[1])
        axes = np.ravel(values).tolist() if values is not None else []
    return {int(axis) % rank for axis in axes}


def check_excluded(view: GraphView, exclude: Collection[str]) -> None:
    """Raise ChainError quantize-exclude-unknown for a node that is not in the graph."""
    names = [node.name for node in view.nodes]
    check_names(exclude, names, "quantize-exclude-unknown", "float")


def check_not_quantized(model: onnx.ModelProto) -> None:
    """Raise ChainError quantize-already for a graph that holds quantized operators."""
    kinds = integer_operators(model)
    if kinds:
        raise ChainError(
            "quantize-already",
            "the model is already quantized",
            why=f"it holds {', '.join(kinds)}",
            hint="bundle and verify it unchanged with --chain none, or pass the float model",
        )


def nothing_to_do(float_layers: Sequence[tuple[str, str, str]]) -> ChainError:
    """Return the error for a graph without a layer that can become integer.

    Args:
        float_layers: (name, operator, reason) of its layers.
    """
    reasons = [f"{name} ({kind}): {reason}" for name, kind, reason in float_layers]
    return ChainError(
        "quantize-nothing-to-do",
        "no layer of the model can be quantized",
        why=join_lines(reasons, 8) or "the graph has no convolution, Gemm or MatMul",
        hint="build without this pass: --chain none",
    )


def no_samples(mode: str) -> ChainError:
    """Return the error for options that need calibration samples when there are none."""
    return ChainError(
        "quantize-calibration-empty",
        "the model cannot be calibrated",
        why=f"the mode {mode!r} needs calibration samples with these options",
        hint="pass calibration samples, or use quantize:mode=dynamic:rounding=nearest",
    )
