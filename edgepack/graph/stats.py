"""Statistics of a graph: bytes, parameters, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from edgepack.onnx_tools.attributes import attributes, constant_value
from edgepack.onnx_tools.operators import Trait, having
from edgepack.onnx_tools.walk import nodes_of, walk_graphs, walk_nodes

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto


@dataclass(frozen=True)
class GraphStats:
    """Statistics of one graph.

    Attributes:
        bytes: size of the serialised model.
        parameters: number of trained values of any type, without scales, zero points, scalars
            and integers that only describe shapes.
        operators: count of each operator, subgraphs included, most frequent first.
    """

    bytes: int
    parameters: int
    operators: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        """Return the statistics as JSON values for the report."""
        return {
            "bytes": self.bytes,
            "parameters": self.parameters,
            "operators": dict(self.operators),
        }


def stats(model: ModelProto) -> GraphStats:
    """Compute the statistics of an `onnx.ModelProto`."""
    counts = Counter(str(node.op_type) for node in walk_nodes(model.graph))
    operators = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return GraphStats(
        bytes=int(model.ByteSize()),
        parameters=_parameters(model),
        operators=operators,
    )


def signed_activations(model: ModelProto) -> bool:
    """Return True if activations are quantized to s8, as GPUs need it; CPUs run that in float."""
    import onnx

    # The third input of QuantizeLinear is the zero point, whose type is that of the result.
    signed = set()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            signed.add(tensor.name)
    for node in nodes_of(model.graph, "QuantizeLinear"):
        if signed.intersection(node.input[2:]):
            return True
    return False


def _tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield name and tensor of every constant: initializers and `Constant` nodes."""
    for graph in walk_graphs(model.graph):
        for initializer in graph.initializer:
            yield initializer.name, initializer
        for node in graph.node:
            tensor = constant_value(node)
            if tensor is not None:
                yield node.output[0], tensor


def _parameters(model: ModelProto) -> int:
    import onnx

    # Every constant of these types counts, unless it only scales or shifts quantized values. An
    # INT32 counts as the bias of a quantized layer, and is a shape or an index elsewhere.
    kinds = onnx.TensorProto
    trained = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    trained |= {kinds.INT8, kinds.UINT8, kinds.INT4, kinds.UINT4}
    quantization = _scales_of_products(model)
    biases: set[str] = set()
    # Two 4-bit values share a byte, and the last block may extend past the row, so the number of
    # values comes from the node: K = 100 rows of N = 10 hold 1,000, though the blocks hold more.
    packed: dict[str, int] = {}
    for node in walk_nodes(model.graph):
        if node.op_type in having(Trait.QUANTIZES):
            quantization.update(node.input[1:])
            biases.add(node.input[0])
        elif node.op_type == "DynamicQuantizeLSTM":
            quantization.update(node.input[8:])
        elif node.op_type == "MatMulNBits":
            quantization.update(node.input[2:4])
            sizes = attributes(node)
            packed[node.input[1]] = sizes["K"] * sizes["N"]
    total = 0
    for name, tensor in _tensors(model):
        is_bias = tensor.data_type == kinds.INT32 and name in biases
        is_trained = tensor.data_type in trained or is_bias
        if tensor.dims and name not in quantization and is_trained:
            total += packed.get(name, prod(tensor.dims))
    return total


def _scales_of_products(model: ModelProto) -> set[str]:
    """Return the constants that dequantize.

    These are multiplied with a cast integer constant, or with the scale of a dynamic quantization:

        table (int8) -> Gather -> Cast -> Mul <- scale
        DynamicQuantizeLinear -> its scale -> Mul <- scale of the weights
    """
    import onnx

    integers: set[str] = set()
    for name, tensor in _tensors(model):
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
            integers.add(name)
    scaling: set[str] = set()
    rows: dict[str, str] = {}
    for node in walk_nodes(model.graph):
        # An embedding reads rows of its table first, so a Gather stands for its table.
        if node.op_type == "Gather":
            rows[node.output[0]] = node.input[0]
        elif node.op_type == "Cast" and rows.get(node.input[0], node.input[0]) in integers:
            scaling.add(node.output[0])
        elif node.op_type == "DynamicQuantizeLinear":
            scaling.add(node.output[1])
    scales: set[str] = set()
    for node in walk_nodes(model.graph):
        if node.op_type == "Mul" and scaling.intersection(node.input):
            # Of Mul(Cast(weight), rows) the other operand is the table that the rows are from.
            for name in set(node.input) - scaling:
                scales.add(rows.get(name, name))
    return scales
