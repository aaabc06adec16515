"""The figures of a graph: bytes, parameters, operators, multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from edgepack.graph.proto import copied, walk_graphs, walk_nodes
from edgepack.runtime.onnx_session import import_engine


@dataclass(frozen=True)
class GraphStats:
    """The figures of one graph.

    Attributes:
        bytes: the serialised model.
        parameters: number of trained values, whatever their type; no scales, no zero points,
            no scalars, no integers that only describe shapes.
        operators: how often each operator occurs, subgraphs included, most frequent first.
        macs: multiply-accumulates of one run at the given sizes (convolutions, matrix products,
            recurrent layers), None where a shape that they need cannot be inferred.
    """

    bytes: int
    parameters: int
    operators: Mapping[str, int]
    macs: int | None

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "bytes": self.bytes,
            "parameters": self.parameters,
            "operators": dict(self.operators),
            "macs": self.macs,
        }


def stats(model: Any, sizes: Mapping[str, int] | None = None) -> GraphStats:
    """The figures of an ONNX model.

    Args:
        model: an `onnx.ModelProto`.
        sizes: size of each dynamic axis by name, for `macs`; 1 where not given.
    """
    counted = Counter(str(node.op_type) for node in walk_nodes(model.graph))
    operators = dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
    return GraphStats(
        bytes=int(model.ByteSize()),
        parameters=_parameters(model),
        operators=operators,
        macs=_macs(model, sizes or {}),
    )


def signed_activations(model: Any) -> bool:
    """Whether activations are quantized to s8: the scheme of GPUs, which the CPU runs in float."""
    import onnx

    signed = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    pairs = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return any(len(node.input) > 2 and node.input[2] in signed for node in pairs)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Every constant tensor with its name: initializers and `Constant` nodes."""
    for graph in walk_graphs(model.graph):
        for initializer in graph.initializer:
            yield initializer.name, initializer
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        yield node.output[0], attribute.t


def _parameters(model: Any) -> int:
    import onnx

    kinds = onnx.TensorProto
    trained = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    trained |= {kinds.INT8, kinds.UINT8, kinds.INT4, kinds.UINT4}
    quantization: set[str] = set()
    biases: set[str] = set()
    for node in walk_nodes(model.graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            quantization.update(node.input[1:])
            biases.add(node.input[0])
    return sum(
        prod(tensor.dims)
        for name, tensor in _tensors(model)
        if tensor.dims
        and name not in quantization
        and (tensor.data_type in trained or (tensor.data_type == kinds.INT32 and name in biases))
    )


def _macs(model: Any, sizes: Mapping[str, int]) -> int | None:
    if any(node.op_type in ("If", "Loop", "Scan") for node in model.graph.node):
        return None  # how often a branch runs is not in the graph
    fixed = copied(model)
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_param, 1)
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    shapes = {name: tuple(tensor.dims) for name, tensor in _tensors(fixed)}
    for infer in (_infer_with_onnx, _infer_with_onnxruntime):
        for value in infer(fixed):
            dims = value.type.tensor_type.shape.dim
            known = all(dim.HasField("dim_value") for dim in dims)
            if value.type.tensor_type.HasField("shape") and known:
                shapes[value.name] = tuple(dim.dim_value for dim in dims)
        total = _total(fixed, shapes)
        if total is not None:
            return total
    return None


def _infer_with_onnx(model: Any) -> list[Any]:
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (RuntimeError, ValueError):  # onnx's InferenceError is a RuntimeError
        return []
    return [*graph.input, *graph.value_info, *graph.output]


def _infer_with_onnxruntime(model: Any) -> list[Any]:
    """Slower, but it follows shapes through Shape, Slice and Concat, as transformers need."""
    import_engine()
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    try:
        graph = SymbolicShapeInference.infer_shapes(model, auto_merge=True).graph
    except Exception:  # noqa: BLE001 - it asserts on what it does not know: then no figure
        return []
    return [*graph.input, *graph.value_info, *graph.output]


def _total(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    total = 0
    for node in model.graph.node:
        try:
            total += _node_macs(node, shapes)
        except KeyError:  # a shape that could not be inferred
            return None
    return total


def _node_macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of one node; 0 for operators without matrix products."""
    if node.op_type == "Conv":
        # Weight [out, in / groups, *kernel]: each output element takes in / groups x kernel.
        return prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        # Weight [in, out / groups, *kernel]: each input element gives out / groups x kernel.
        return prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type == "MatMul":
        return prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    if node.op_type in ("LSTM", "GRU", "RNN"):
        # X [time, batch, in] by W [directions, gates x hidden, in] and R [.., .., hidden].
        steps = prod(shapes[node.input[0]][:2])
        return steps * (prod(shapes[node.input[1]]) + prod(shapes[node.input[2]]))
    return 0
