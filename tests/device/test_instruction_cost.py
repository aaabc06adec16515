"""Cost of the auction in instructions: counted on the target's CPU, and never called a time."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.context import Graph
from edgepack.runtime.tensor import Tensor
from edgepack.stages.auction import Candidate
from edgepack.stages.auction.instructions import InstructionCost, describe_counts
from support.emulation import KEPT

SIZE = 128


def product(quantized: bool) -> Graph:
    """Return one product of matrices of 128 x 128, in float or between Q/DQ nodes."""
    weights = np.random.default_rng(0).integers(-100, 100, (SIZE, SIZE)).astype(np.int8)
    names, nodes = ("x", "w"), []
    initializers = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    if quantized:
        names = ("x_dq", "w_dq")
        initializers = [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.float32(1), "s"),
            numpy_helper.from_array(np.uint8(128), "zx"),
            numpy_helper.from_array(np.int8(0), "zw"),
            numpy_helper.from_array(np.float32(1000), "sy"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "zx"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "s", "zx"], ["x_dq"]),
            helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["w_dq"]),
        ]
    output = "y_f" if quantized else "y"
    nodes.append(helper.make_node("MatMul", list(names), [output]))
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["y_f", "sy", "zx"], ["y_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y_q", "sy", "zx"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE, SIZE])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    shape = (SIZE, SIZE)
    return Graph(
        model.SerializeToString(), [Tensor("x", "float32", shape)], [Tensor("y", "float32", shape)]
    )


def test_a_product_without_dot_products_is_counted_and_compared(
    arm: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(KEPT))
    float32 = Candidate("fp32", product(False))
    int8 = Candidate("int8", product(True))
    cost = InstructionCost({"x": np.ones((SIZE, SIZE), np.float32)}, ["cortex-a53"])
    costs = cost.measure([float32, int8])
    first, second = cost.counts["cortex-a53"]
    assert first is not None
    assert second is not None
    # 128 ** 3 products: 4 in an fmla, 8 in an smlal or smull.
    assert first.compute["fmla"] == SIZE**3 // 4
    assert second.compute["smlal"] + second.compute["smull"] == SIZE**3 // 8
    assert math.isclose(costs[0], first.total)
    assert math.isclose(costs[1], second.total)
    (sentence,) = describe_counts(cost, [float32, int8])
    assert sentence.startswith("cortex-a53, emulated: int8 takes ")
    assert sentence.endswith("which is not a time")
