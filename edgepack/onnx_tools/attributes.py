"""Attributes of nodes as Python values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto


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
    """Return the tensor of a Constant node; None if it stores its value in another attribute."""
    value: TensorProto | None = attribute(node, "value")
    return value


def _value(item: Any) -> Any:
    from onnx import helper

    return helper.get_attribute_value(item)
