"""Lower the opset of a graph, for engines that read older ones than the exporters write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgepack.onnx_tools.clean import remove_unused_initializers
from edgepack.onnx_tools.walk import DEFAULT_DOMAINS, by_name, is_standard, walk_nodes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def lower_opset(model: ModelProto, opset: int) -> tuple[str, ...]:
    """Lower the opset of a model in place, if its nodes can be written in the older one.

    A node can if its inputs and attributes exist in the older version of its operator; of a
    reduction, constant axes become an attribute. A difference in meaning does not pass unseen,
    since the model is compared with the original afterwards, as any other.

    Returns the operators that prevent it; the model is unchanged if there are any.
    """
    constants = by_name(model.graph.initializer)
    lacking: dict[str, None] = {}
    reductions: list[tuple[NodeProto, list[int]]] = []
    for node in walk_nodes(model.graph):
        if not is_standard(node) or _exists(node, opset):
            continue
        # ReduceMean of opset 18 takes its axes as an input, that of opset 17 as an attribute.
        axes = _read_axes(node, constants)
        if axes is None:
            lacking[node.op_type] = None
        else:
            reductions.append((node, axes))
    if lacking:
        return tuple(lacking)
    for node, axes in reductions:
        _move_axes(node, axes)
    remove_unused_initializers(model.graph)
    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = opset
    return ()


def _exists(node: NodeProto, opset: int) -> bool:
    """Return True if a node has only inputs and attributes of its operator's older version."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return False
    if len(node.input) > schema.max_input:
        return False
    return all(item.name in schema.attributes for item in node.attribute)


def _read_axes(node: NodeProto, constants: Mapping[str, TensorProto]) -> list[int] | None:
    """Return the constant axes of a reduction; None for any other node."""
    import onnx

    # ReduceMean of opset 18 is ReduceMean(x, axes); that of 17 has an attribute `axes`.
    if not node.op_type.startswith("Reduce") or len(node.input) != 2:
        return None
    tensor = constants.get(node.input[1])
    if tensor is None:
        return None
    axes = onnx.numpy_helper.to_array(tensor).reshape(-1).tolist()
    # Without axes, opset 18 may mean none of them, and opset 17 means all.
    return list(map(int, axes)) or None


def _move_axes(node: NodeProto, axes: list[int]) -> None:
    import onnx

    del node.input[1]
    for index, item in enumerate(node.attribute):
        if item.name == "noop_with_empty_axes":
            del node.attribute[index]
            break
    node.attribute.append(onnx.helper.make_attribute("axes", axes))
