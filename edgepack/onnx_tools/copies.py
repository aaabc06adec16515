"""Copies of models and of their parts.

Protobuf's repeated fields own their messages: one that is removed and added again has to be copied
in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from onnx import ModelProto

Message = TypeVar("Message")


def copied(message: Message) -> Message:
    """Return a deep copy of a model, a node, a tensor or any other message."""
    # onnx does not declare the base class of its messages, so their methods have no types here.
    copy: Any = type(message)()
    copy.CopyFrom(message)
    result: Message = copy
    return result


def replace_items(field: Any, items: Iterable[object]) -> None:
    """Make copies of some messages the whole content of a repeated field, such as `graph.node`."""
    # Copied first, since the items may be messages of the field that is emptied.
    copies = list(map(copied, items))
    del field[:]
    field.extend(copies)


def with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a copy of a model that returns these tensors alone, inner ones included."""
    import onnx

    # onnxruntime infers the types of outputs that have a name alone.
    copy = copied(model)
    del copy.graph.output[:]
    for name in names:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy
