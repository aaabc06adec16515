"""An fp16 network on a CPU, with its roundings written out.

onnxruntime's CPU provider has hardly an fp16 kernel. It widens the weights of an fp16 graph,
computes in float32 from one end to the other, and rounds nothing on the way: a value over 65504,
which is infinity on a GPU, passes unseen. So that a CPU can stand in for a GPU, every fp16 tensor
that a node makes is rounded here by two Casts, which onnxruntime keeps. That is what a GPU
computes that sums in float32 and stores fp16, but for the order of its sums.

The graph is edited as bytes: the device has no `onnx`. A message is a sequence of fields, each a
tag and a value (https://protobuf.dev/programming-guides/encoding); the numbers of the fields are
those of onnx.proto3.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Set, Tuple, Union

Bytes = Union[bytes, memoryview]

FLOAT, FLOAT16 = 1, 10
# Fields of ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto and TypeProto.
GRAPH = 7
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT, OP_TYPE, ATTRIBUTE = 1, 2, 4, 5
TENSOR_TYPE, TENSOR_NAME = 2, 8
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, ELEM_TYPE = 1, 2, 1, 1
# AttributeProto, and its kind for a whole number.
ATTRIBUTE_NAME, ATTRIBUTE_I, ATTRIBUTE_TYPE, INT = 1, 3, 20, 2

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def rounded(model: bytes) -> bytes:
    """The model with every fp16 tensor made in float32 and rounded; itself where there is none.

    Args:
        model: a serialised ONNX whose `value_info` tells which tensors are fp16. Inputs and
            outputs keep their names and types; what subgraphs make is left as it is.

    Raises ValueError where the bytes are no protobuf message.
    """
    view = memoryview(model)
    for number, start, value, end in _fields(view):
        if number == GRAPH:
            edited = _graph(view[value:end])
            if not edited:
                return model
            return b"".join((view[:start], _field(GRAPH, edited), view[end:]))
    return model


def _graph(graph: memoryview) -> bytes:
    """The graph with its roundings; empty where no node makes an fp16 tensor."""
    fields = list(_fields(graph))
    half: Dict[int, Set[bytes]] = {INPUT: set(), OUTPUT: set(), VALUE_INFO: set()}
    given: List[bytes] = []
    for number, _, value, end in fields:
        field = graph[value:end]
        if number in half and _elem_type(field) == FLOAT16:
            half[number].add(bytes(_first(field, VALUE_NAME)))
        if number == INITIALIZER and _whole(_first(field, TENSOR_TYPE)) == FLOAT16:
            given.append(bytes(_first(field, TENSOR_NAME)))
    if not half[VALUE_INFO]:
        return b""
    given += sorted(half[INPUT].difference(given))
    wide = {name: name + b"#float32" for name in set(given).union(*half.values())}
    parts: List[Bytes] = [_cast(name, wide[name], FLOAT) for name in given]
    others: List[Bytes] = []
    for number, start, value, end in fields:
        if number == NODE:
            parts += _node(graph[value:end], wide)
        else:
            others.append(graph[start:end])
    return b"".join(parts + others)


def _node(node: memoryview, wide: Dict[bytes, bytes]) -> List[bytes]:
    """A node that reads and makes float32, and the Casts that round what it makes."""
    parts: List[Bytes] = []
    casts: List[bytes] = []
    for number, start, value, end in _fields(node):
        name = bytes(node[value:end]) if number in (NODE_INPUT, NODE_OUTPUT) else b""
        if name not in wide:
            parts.append(node[start:end])
        elif number == NODE_INPUT:
            parts.append(_field(NODE_INPUT, wide[name]))
        else:
            exact = name + b"#exact"
            parts.append(_field(NODE_OUTPUT, exact))
            casts += [_cast(exact, name, FLOAT16), _cast(name, wide[name], FLOAT)]
    return [_field(NODE, b"".join(parts)), *casts]


def _cast(source: bytes, output: bytes, to: int) -> bytes:
    attribute = _field(ATTRIBUTE_NAME, b"to")
    attribute += _varint(ATTRIBUTE_I << 3) + _varint(to)
    attribute += _varint(ATTRIBUTE_TYPE << 3) + _varint(INT)
    node = _field(NODE_INPUT, source) + _field(NODE_OUTPUT, output)
    return _field(NODE, node + _field(OP_TYPE, b"Cast") + _field(ATTRIBUTE, attribute))


def _elem_type(value: memoryview) -> int:
    """Of a ValueInfoProto; 0 where it is no tensor or has no type."""
    tensor = _first(_first(value, VALUE_TYPE), TYPE_TENSOR)
    return _whole(_first(tensor, ELEM_TYPE))


def _first(message: memoryview, wanted: int) -> memoryview:
    """The value of the first field of that number; empty where there is none."""
    for number, _, value, end in _fields(message):
        if number == wanted:
            return message[value:end]
    return message[:0]


def _fields(message: memoryview) -> Iterator[Tuple[int, int, int, int]]:
    """Of each field its number, where it starts, where its value starts, and where it ends."""
    place = 0
    while place < len(message):
        start = place
        key, value = _read(message, start)
        kind = key & 7
        if kind == VARINT:
            _, place = _read(message, value)
        elif kind == LENGTH:
            size, value = _read(message, value)
            place = value + size
        elif kind in (FIXED64, FIXED32):
            place = value + (8 if kind == FIXED64 else 4)
        else:
            raise ValueError("field {} has the unknown wire type {}".format(key >> 3, kind))
        if place > len(message):
            raise ValueError("field {} ends after its message".format(key >> 3))
        yield key >> 3, start, value, place


def _field(number: int, value: Bytes) -> bytes:
    return b"".join((_varint(number << 3 | LENGTH), _varint(len(value)), value))


def _whole(value: memoryview) -> int:
    return _read(value, 0)[0] if len(value) else 0


def _read(message: memoryview, place: int) -> Tuple[int, int]:
    """A varint, and where it ends."""
    number = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a number does not end")
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, place


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
