"""Tensors of an ONNX model that are stored in other files, and their lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING

from edgepack.onnx_tools.walk import subgraphs

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

# Types with several values to a byte: 3 values of INT4 take 2 bytes, though numpy's stand-in for
# the type takes 3.
PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the size in bytes of a TensorProto's values, from its type and shape.

    Raises ValueError, KeyError or TypeError if ONNX has no such type.
    """
    from onnx import TensorProto, helper

    kind = TensorProto.DataType.Name(tensor.data_type)
    bits = PACKED_BITS.get(
        kind, 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    )
    # INT4 of (3,): 12 bits are 2 bytes.
    return (prod(map(int, tensor.dims)) * bits + 7) // 8


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every TensorProto of a model, in initializers, attributes, subgraphs and functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
        for attribute in function.attribute_proto:
            yield from _of_attribute(attribute)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)
        for graph in subgraphs(node):
            yield from _of_graph(graph)


def _of_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [*attribute.sparse_tensors]
    if attribute.HasField("sparse_tensor"):
        sparse.append(attribute.sparse_tensor)
    for value in sparse:
        yield from (value.values, value.indices)


def set_lengths(model: ModelProto) -> None:
    """Write the length of every external tensor that lacks one, in place.

    Without a length onnx reads to the end of the file, past the tensor.
    """
    for tensor in tensors(model):
        keys = {entry.key for entry in tensor.external_data}
        if keys and "length" not in keys:
            tensor.external_data.add(key="length", value=str(tensor_bytes(tensor)))
