"""Multiply-accumulates, against numbers worked out by hand and against torch's own count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgepack.graph import Runner, export_module, macs, simplify
from edgepack.onnx_tools.fusion import fuse
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.runtime.tensor import Tensor
from support.graph_nets import runner
from support.quantize_nets import Arrays, Steps, gated, images, residual


def one(
    operator: str,
    fed: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    inputs: Sequence[str] = (),
    *,
    outputs: Sequence[str] = ("y",),
    domain: str = "",
    **attributes: Any,
) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray]]:
    """A graph of one node, and its feed."""
    constants = constants or {}
    node = helper.make_node(
        operator, inputs or [*fed, *constants], outputs, domain=domain, **attributes
    )
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in fed.items()}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, kinds[n], [None] * fed[n].ndim) for n in fed],
        [onnx.ValueInfoProto(name=outputs[0])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), fed


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def whole(*shape: int, of: type = np.uint8) -> np.ndarray:
    return np.ones(shape, of)


SCALE, ZERO = np.float32(0.5), np.uint8(3)
CONV = {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}
# 3 x 10 x 8 by a stride of 2: 2 samples of 4 channels at 5 x 4 places, each of 2 x 3 x 3.
CONV_MACS = 2 * 4 * 5 * 4 * 2 * 3 * 3
BY_HAND = {
    "conv": (one("Conv", {"x": floats(2, 4, 10, 8)}, {"w": floats(4, 2, 3, 3)}, **CONV), CONV_MACS),
    "depthwise": (
        one("Conv", {"x": floats(1, 6, 8, 8)}, {"w": floats(6, 1, 3, 3)}, group=6), 6 * 36 * 9),
    "conv in one dimension": (
        one("Conv", {"x": floats(1, 3, 9)}, {"w": floats(5, 3, 3)}, dilations=[2]), 5 * 5 * 9),
    "conv transposed": (
        one("ConvTranspose", {"x": floats(1, 6, 4, 4)}, {"w": floats(6, 2, 3, 3)}, group=2,
            strides=[2, 2]), 6 * 16 * 2 * 9),
    "gemm": (one("Gemm", {"x": floats(3, 4)}, {"w": floats(4, 5)}), 3 * 4 * 5),
    "gemm transposed": (
        one("Gemm", {"x": floats(4, 3)}, {"w": floats(5, 4)}, transA=1, transB=1), 3 * 4 * 5),
    "products of attention": (
        one("MatMul", {"q": floats(2, 4, 7, 8), "k": floats(2, 4, 8, 9)}), 2 * 4 * 7 * 8 * 9),
    "broadcast product": (
        one("MatMul", {"q": floats(3, 1, 7, 8), "k": floats(5, 8, 2)}), 3 * 5 * 7 * 8 * 2),
    "vectors": (one("MatMul", {"a": floats(6), "b": floats(6)}), 6),
    "lstm": (
        one("LSTM", {"x": floats(5, 2, 4)}, {"w": floats(2, 12, 4), "r": floats(2, 12, 3)},
            hidden_size=3, direction="bidirectional"), 5 * 2 * 2 * (12 * 4 + 12 * 3)),
    "gru": (
        one("GRU", {"x": floats(5, 2, 4)}, {"w": floats(1, 9, 4), "r": floats(1, 9, 3)},
            hidden_size=3), 5 * 2 * (9 * 4 + 9 * 3)),
    "einsum": (
        one("Einsum", {"a": floats(2, 3, 4), "b": floats(2, 4, 5)}, equation="bij, bjk -> bik"),
        2 * 3 * 4 * 5),
    "einsum with dots": (
        one("Einsum", {"a": floats(7, 1, 3, 4), "b": floats(1, 6, 4)}, equation="...ij,...j->...i"),
        7 * 6 * 3 * 4),
    "conv of integers": (
        one("ConvInteger", {"x": whole(2, 4, 10, 8)}, {"w": whole(4, 2, 3, 3)}, **CONV), CONV_MACS),
    "qlinear conv": (
        one("QLinearConv", {"x": whole(2, 4, 10, 8)},
            {"s": SCALE, "z": ZERO, "w": whole(4, 2, 3, 3)},
            ["x", "s", "z", "w", "s", "z", "s", "z"], **CONV), CONV_MACS),
    "product of integers": (
        one("MatMulInteger", {"x": whole(3, 4)}, {"w": whole(4, 5)}), 3 * 4 * 5),
    "qlinear product": (
        one("QLinearMatMul", {"x": whole(3, 4)}, {"s": SCALE, "z": ZERO, "w": whole(4, 5)},
            ["x", "s", "z", "w", "s", "z", "s", "z"]), 3 * 4 * 5),
    "qgemm": (
        one("QGemm", {"x": whole(3, 4)}, {"s": SCALE, "z": ZERO, "w": whole(5, 4)},
            ["x", "s", "z", "w", "s", "z"], domain="com.microsoft", transB=1), 3 * 4 * 5),
    "dynamic product": (
        one("DynamicQuantizeMatMul", {"x": floats(3, 4)}, {"w": whole(4, 5), "s": floats(1)},
            domain="com.microsoft"), 3 * 4 * 5),
    "four bits": (
        one("MatMulNBits", {"x": floats(2, 3, 32)},
            {"w": whole(5, 1, 16), "s": floats(5)}, domain="com.microsoft",
            K=32, N=5, bits=4, block_size=32), 2 * 3 * 32 * 5),
    "dynamic lstm": (
        one("DynamicQuantizeLSTM", {"x": floats(5, 2, 4)},
            {"w": whole(1, 4, 12), "r": whole(1, 3, 12), "s": floats(1), "z": whole(1)},
            ["x", "w", "r", "", "", "", "", "", "s", "z", "s", "z"], domain="com.microsoft",
            hidden_size=3), 5 * 2 * (12 * 4 + 12 * 3)),
    "nothing to multiply": (one("Relu", {"x": floats(3, 4)}), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_every_operator_by_hand(name: str) -> None:
    (model, fed), expected = BY_HAND[name]
    assert Runner(model).run(fed)
    assert macs(model, fed) == expected


class Attention(nn.Module):
    """Convolutions, a transposed one, attention and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.deep(self.stem(x)))).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((torch.softmax(q @ k.transpose(1, 2) / 3, -1) @ v).mean(1))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_torch_module_has_as_many_as_torch_counts(batch: int) -> None:
    module = Attention().eval()
    inputs = (Tensor("x", "float32", ("batch", 3, 8, 8)),)
    fed = {"x": np.random.default_rng(1).standard_normal((batch, 3, 8, 8)).astype(np.float32)}
    expected = runner(module, inputs)(fed)
    with FlopCounterMode(display=False) as counter:
        module(torch.from_numpy(fed["x"]))
    model = simplify(export_module(module, inputs, fed, 18).model, fed).model
    np.testing.assert_allclose(Runner(model).run(fed)[0], expected[0], atol=1e-5)
    assert macs(model, fed) == counter.get_total_flops() // 2


@pytest.mark.parametrize("net", [residual, gated])
def test_quantization_changes_nothing_of_them(net: Any) -> None:
    """Neither as Q/DQ pairs nor in the integer kernels that onnxruntime makes of them."""
    model, fed = net(), {"x": images(1)}
    made = quantize(model, Arrays(x=images(16)), QuantizeOptions(), Steps()).model
    assert macs(made, fed) == macs(fuse(made), fed) == macs(model, fed) > 0


def test_products_in_a_branch_are_not_guessed() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["x", "x"], [name])
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])
        return helper.make_graph([node], name, [], [made])

    for operator, expected in (("MatMul", None), ("Add", 0)):
        node = helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("a", operator), else_branch=branch("b", "Mul")
        )
        graph = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        assert macs(model, {"c": np.array(True), "x": floats(2, 2)}) == expected


def test_a_fused_attention_layer_is_not_counted_as_nothing() -> None:
    model, fed = one(
        "MultiHeadAttention",
        {name: floats(1, 4, 8) for name in "qkv"},
        domain="com.microsoft",
        num_heads=2,
    )
    assert Runner(model).run(fed)
    assert macs(model, fed) is None
