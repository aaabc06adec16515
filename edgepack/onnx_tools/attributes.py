"""Attributes of nodes as Python values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TensorProto


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or the default."""
    for item in node.attribute:
        if item.name == name:
            return _value(item)
    return default


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the values of all attributes of a node, by name."""
    return {item.name: _value(item) for item in node.attribute}


def constant_value(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node; None for other nodes, and for other ways to store it.

    A Constant may also hold numbers, strings or a sparse tensor in other attributes.
    """
    if node.op_type != "Constant":
        return None
    # For example Constant(value=<int64 [2, 3]>) -> shape.
    value: TensorProto | None = attribute(node, "value")
    return value


def _value(item: AttributeProto) -> Any:
    from onnx import helper

    return helper.get_attribute_value(item)
