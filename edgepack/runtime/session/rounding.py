"""Make the roundings of an fp16 network explicit, so that a CPU computes like a GPU.

onnxruntime's CPU provider has few fp16 kernels. It widens the weights of an fp16 graph, computes in
float32 throughout, and rounds nothing: a value over 65504, which is infinity on a GPU, goes
unnoticed. Here every fp16 tensor that a node produces is rounded by two Casts, which onnxruntime
does not remove:

    x (fp16) -> Cast -> x#float32 -> Relu -> y#exact -> Cast -> y (fp16) -> Cast -> y#float32

Except for the order of its sums this equals a GPU that sums in float32 and stores fp16.

The graph is edited as bytes, since devices have no `onnx`. A message is a sequence of fields, each
a tag and a value (https://protobuf.dev/programming-guides/encoding); the field numbers are those of
onnx.proto3.
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

# Wire types, and the sizes of the fixed ones in bytes.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}


def round_halves(model: bytes) -> bytes:
    """Return the model with all fp16 tensors computed in float32 and rounded; else unchanged.

    Args:
        model: a serialised ONNX whose `value_info` lists the types of its tensors. Inputs and
            outputs keep their names and types; subgraphs are not changed.

    Raises ValueError if the bytes are not a protobuf message.
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
    """Return the graph with its roundings; empty if no node produces an fp16 tensor."""
    fields = list(_fields(graph))
    # Names of the fp16 tensors by kind. Those from outside the graph's nodes (`sources`) are
    # widened by a Cast at the start; those that a node produces get their Casts behind it.
    half: Dict[int, Set[bytes]] = {INPUT: set(), OUTPUT: set(), VALUE_INFO: set()}
    sources: List[bytes] = []
    for number, _, value, end in fields:
        field = graph[value:end]
        if number in half and _elem_type(field) == FLOAT16:
            half[number].add(bytes(_first_value(field, VALUE_NAME)))
        if number == INITIALIZER and _decode_integer(_first_value(field, TENSOR_TYPE)) == FLOAT16:
            sources.append(bytes(_first_value(field, TENSOR_NAME)))
    if not half[VALUE_INFO]:
        return b""
    sources += sorted(half[INPUT].difference(sources))
    wide = {name: name + b"#float32" for name in set(sources).union(*half.values())}
    parts: List[Bytes] = [_cast(name, wide[name], FLOAT) for name in sources]
    others: List[Bytes] = []
    for number, start, value, end in fields:
        if number == NODE:
            parts += _node(graph[value:end], wide)
        else:
            others.append(graph[start:end])
    return b"".join(parts + others)


def _node(node: memoryview, wide: Dict[bytes, bytes]) -> List[bytes]:
    """Return the node on float32 tensors, and the Casts that round its outputs."""
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
    # A field's tag is its number times 8 plus its wire type, which is 0 for a varint.
    attribute = _field(ATTRIBUTE_NAME, b"to")
    attribute += _varint(ATTRIBUTE_I << 3) + _varint(to)
    attribute += _varint(ATTRIBUTE_TYPE << 3) + _varint(INT)
    node = _field(NODE_INPUT, source) + _field(NODE_OUTPUT, output)
    return _field(NODE, node + _field(OP_TYPE, b"Cast") + _field(ATTRIBUTE, attribute))


def _elem_type(value: memoryview) -> int:
    """Return the element type of a ValueInfoProto; 0 if it is not a tensor or has no type."""
    tensor = _first_value(_first_value(value, VALUE_TYPE), TYPE_TENSOR)
    return _decode_integer(_first_value(tensor, ELEM_TYPE))


def _first_value(message: memoryview, field_number: int) -> memoryview:
    """Return the value of the first field with a number; empty if there is none."""
    for number, _, value, end in _fields(message):
        if number == field_number:
            return message[value:end]
    return message[:0]


def _fields(message: memoryview) -> Iterator[Tuple[int, int, int, int]]:
    """Yield the number of each field, and the offsets of its tag, its value and its end.

    The bytes 0a 03 61 62 63 are field 1, of three bytes "abc": (1, 0, 2, 5).
    """
    offset = 0
    while offset < len(message):
        start = offset
        key, value = _read(message, start)
        kind = key & 7
        if kind == VARINT:
            _, offset = _read(message, value)
        elif kind == LENGTH:
            size, value = _read(message, value)
            offset = value + size
        elif kind in FIXED_SIZES:
            offset = value + FIXED_SIZES[kind]
        else:
            raise ValueError(f"field {key >> 3} has the unknown wire type {kind}")
        if offset > len(message):
            raise ValueError(f"field {key >> 3} ends after its message")
        yield key >> 3, start, value, offset


def _field(number: int, value: Bytes) -> bytes:
    return b"".join((_varint(number << 3 | LENGTH), _varint(len(value)), value))


def _decode_integer(value: memoryview) -> int:
    return _read(value, 0)[0] if len(value) else 0


def _read(message: memoryview, offset: int) -> Tuple[int, int]:
    """Decode a varint, seven bits a byte, lowest first; return it and the offset of its end.

    The bytes ac 02 are 0x2c + (0x02 << 7) = 300.
    """
    number = shift = 0
    while True:
        if offset >= len(message) or shift > 63:
            raise ValueError("a number does not end")
        byte = message[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, offset


def _varint(number: int) -> bytes:
    # 300 = 0b10_0101100: the low seven bits with the mark "more follow" (ac), then 02.
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
