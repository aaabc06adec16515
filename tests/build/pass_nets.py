"""Small networks that between them take every path of every pass, with their samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from support.half_nets import attention, loud, norm
from support.quantize_nets import Net, gated, images, residual

# The first for calibration, then for evaluation, the rest for training.
CALIBRATION, EVALUATION, TRAINING = 24, 16, 48
_TOTAL = CALIBRATION + EVALUATION + TRAINING
_RANDOM = np.random.default_rng(5)

PICTURES = images(_TOTAL)
ROWS = _RANDOM.standard_normal((_TOTAL, 8, 32)).astype(np.float32)
VECTORS = _RANDOM.standard_normal((_TOTAL, 64)).astype(np.float32)
TOKENS = _RANDOM.integers(0, 60, (_TOTAL, 9))
LABELS = _RANDOM.integers(0, 5, TRAINING)
# Networks whose output is not one set of class scores for each sample.
VALUES = ("gated", "newer", "recurrent", "normalized")
# Networks with labelled training samples; the others learn from the teacher alone.
LABELLED = ("Residual", "bert")

# Definitions of torch networks as a user's file.
MODULES = """
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.one(x)))
        x = F.relu(self.two(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def mobile(width=16):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width),
        nn.Hardswish(), nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * width, 32), nn.PReLU(), nn.Linear(32, 5),
    )


def perceptron(width=32):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width),
        nn.ReLU(), nn.Linear(width, 5),
    )


def student():
    return mobile(8)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean(1))


def augment(batch, generator):
    shift = torch.randn(batch["x"].shape[0], 1, 1, 1, generator=generator)
    return {"x": batch["x"] + 0.1 * shift}
"""


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: list[int | str],
    *,
    rank: int = 2,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a model from x to y of a rank; it may use operators of onnxruntime."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, ["n", *([8] * (rank - 2)), 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _fused() -> onnx.ModelProto:
    """The operators that onnxruntime writes for a layer with its activation."""
    weights = Net(3).weights
    microsoft = {"domain": "com.microsoft"}
    make = helper.make_node
    nodes = [
        make("FusedConv", ["x", "w0", "b0"], ["a"], pads=[1] * 4, activation="Relu", **microsoft),
        make("FusedConv", ["a", "w1", "b1", "a"], ["b"], pads=[1] * 4, activation="Clip",
             activation_params=[-0.5, 4.0], **microsoft),
        make("GlobalAveragePool", ["b"], ["c"]),
        make("Flatten", ["c"], ["d"]),
        make("FusedGemm", ["d", "w2", "b2"], ["e"], activation="LeakyRelu", activation_alpha=0.1,
             transB=1, **microsoft),
        make("FusedMatMul", ["e", "w3"], ["y"], transB=1, alpha=0.5, **microsoft),
    ]  # fmt: skip
    constants = {
        "w0": weights(8, 3, 3, 3), "b0": weights(8), "w1": weights(8, 8, 3, 3), "b1": weights(8),
        "w2": weights(16, 8), "b2": weights(16), "w3": weights(6, 16),
    }  # fmt: skip
    return _model(nodes, constants, ["n", 3, 16, 16])


def _newer() -> onnx.ModelProto:
    """Operators of opset 23, which no target's engine has."""
    weights = Net(4).weights
    nodes = [
        helper.make_node("Attention", ["x", "x", "x"], ["a"], q_num_heads=2, kv_num_heads=2),
        helper.make_node("RMSNormalization", ["a", "s"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    constants = {"s": np.ones(32, np.float32), "w": weights(32, 6)}
    return _model(nodes, constants, ["n", 8, 32], rank=3, opset=23)


def _low_precision() -> onnx.ModelProto:
    """Weights and arithmetic in fp16, with the nodes out of order."""
    weights = Net(5).weights
    nodes = [
        helper.make_node("Gemm", ["d", "w1", "b1"], ["y"], transB=1),
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
    ]
    constants = {"w0": weights(8, 3, 3, 3), "w1": weights(6, 8), "b1": weights(6)}
    halves = {name: array.astype(np.float16) for name, array in constants.items()}
    return _model(nodes, halves, ["n", 3, 16, 16], kind=TensorProto.FLOAT16)


def _branching() -> onnx.ModelProto:
    """Layers inside the branches of an If; both read tensors of the outer graph."""
    weights = Net(6).weights
    make = helper.make_node

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(weights(8, 8, 3, 3), f"{name}_w")
        nodes = [
            make("Conv", ["b", f"{name}_w", "shared"], [f"{name}_a"], pads=[1] * 4),
            make("Relu", [f"{name}_a"], [f"{name}_y"]),
        ]
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 8, 16, 16])
        return helper.make_graph(nodes, name, [], [output], [weight])

    nodes = [
        make("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        make("Relu", ["a"], ["b"]),
        make("ReduceSum", ["x"], ["sum"], keepdims=0),
        make("Greater", ["sum", "zero"], ["positive"]),
        make("If", ["positive"], ["c"], then_branch=branch("then"), else_branch=branch("else")),
        make("GlobalAveragePool", ["c"], ["d"]),
        make("Flatten", ["d"], ["e"]),
        make("Gemm", ["e", "w1"], ["y"], transB=1),
    ]
    constants = {
        "w0": weights(8, 3, 3, 3), "w1": weights(6, 8), "shared": weights(8, 4)[:, 0],
        "zero": np.float32(0),
    }  # fmt: skip
    return _model(nodes, constants, ["n", 3, 16, 16])


def _recurrent() -> onnx.ModelProto:
    """An LSTM, a GRU and an RNN in a row, then a MatMul."""
    net = Net(7)
    x = net.op("Transpose", "x", perm=[1, 0, 2])
    size = 32
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weight = net.constant(net.weights(1, gates * 16, size))
        memory = net.constant(net.weights(1, gates * 16, 16))
        bias = net.constant(net.weights(1, gates * 32) / 4)
        x = net.op(kind, x, weight, memory, bias, hidden_size=16)
        x = net.op("Squeeze", x, net.constant(np.array([1])))
        size = 16
    x = net.op("Transpose", x, perm=[1, 0, 2])
    return net.model(
        {"x": ["n", 8, 32]}, [net.op("MatMul", x, net.constant(net.weights(16, 6)))], opset=18
    )


def _volume() -> onnx.ModelProto:
    """Two convolutions in three dimensions, a transposed one in two, and a Gemm."""
    net = Net(8)
    x = net.op("Unsqueeze", "x", net.constant(np.array([1])))
    x = net.op("Relu", net.op("Conv", x, net.constant(net.weights(4, 1, 3, 3, 3)), pads=[1] * 6))
    x = net.op("Relu", net.op("Conv", x, net.constant(net.weights(4, 4, 3, 3, 3)), pads=[1] * 6))
    x = net.op("ReduceMean", x, net.constant(np.array([2])), keepdims=0)
    x = net.op("ConvTranspose", x, net.constant(net.weights(4, 6, 2, 2)), strides=[2, 2])
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model({"x": ["n", 3, 16, 16]}, [net.gemm(x, 6, 5)])


def _normalized() -> onnx.ModelProto:
    """A transformer's block: LayerNormalization, attention, GELU in its parts, residual sums."""
    net = Net(9)

    def linear(x: str, cin: int, cout: int) -> str:
        product = net.op("MatMul", x, net.constant(net.weights(cin, cout)))
        return net.op("Add", product, net.constant(net.weights(cout, 4)[:, 0]))

    def normalize(x: str) -> str:
        scale = net.constant(1 + net.weights(32, 4)[:, 0])
        return net.op("LayerNormalization", x, scale, net.constant(net.weights(32, 4)[:, 0]))

    x = normalize("x")
    query, key, value = (linear(x, 32, 32) for _ in range(3))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
    mixed = net.op("MatMul", net.op("Softmax", scores), value)
    x = net.op("Add", "x", linear(mixed, 32, 32))
    inner = linear(normalize(x), 32, 64)
    root = net.op("Div", inner, net.constant(np.float32(np.sqrt(2))))
    gate = net.op("Add", net.op("Erf", root), net.constant(np.float32(1)))
    inner = net.op("Mul", net.op("Mul", inner, gate), net.constant(np.float32(0.5)))
    x = net.op("Add", x, linear(inner, 64, 32))
    return net.model({"x": ["n", 8, 32]}, [linear(normalize(x), 32, 6)])


def _outlier() -> onnx.ModelProto:
    """The first layer turns a loud channel down, so eight bits for its input miss the gates."""
    net = Net(10)
    weight = net.weights(8, 3, 3, 3)
    weight[:, 1] /= 3000
    x = net.op("Relu", net.op("Conv", "x", net.constant(weight), pads=[1] * 4))
    x = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model({"x": ["n", 3, 16, 16]}, [net.gemm(x, 8, 4)])


GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], np.ndarray]] = {
    "residual": (residual, PICTURES),
    "gated": (gated, PICTURES),
    "fused": (_fused, PICTURES),
    "newer": (_newer, ROWS),
    "low_precision": (_low_precision, PICTURES.astype(np.float16)),
    "branching": (_branching, PICTURES),
    "recurrent": (_recurrent, ROWS),
    "volume": (_volume, PICTURES),
    "normalized": (_normalized, ROWS),
    "outlier": (_outlier, PICTURES * np.array([1, 300, 1], np.float32)[:, None, None]),
    "loud": (loud, PICTURES),
    "norm": (norm, VECTORS),
    "attention": (lambda: attention(-np.inf), ROWS),
}
NETWORKS = {
    "Residual": PICTURES, "mobile": PICTURES, "perceptron": PICTURES, "Encoder": ROWS,
}  # fmt: skip


def write(name: str, folder: Path) -> list[str]:
    """Write a network and its samples into a folder; return the arguments of its build."""
    path = folder / name
    if name in GRAPHS:
        make, samples = GRAPHS[name]
        model = path.with_suffix(".onnx")
        onnx.save(make(), model)
        arguments, field = [], "x"
    elif name == "bert":
        model, samples = path, TOKENS
        _write_bert(model)
        arguments, field = ["--input", "input_ids:int64:batch,sequence"], "input_ids"
    else:
        model, samples = path.with_suffix(".pt"), NETWORKS[name]
        _write_state(name, model)
        dims = ",".join(map(str, samples.shape[1:]))
        declared = f"x:float32:batch,{dims}"
        arguments, field = ["--arch", f"{folder / 'modules.py'}:{name}", "--input", declared], "x"
    calibration, evaluation, training = np.split(samples, [CALIBRATION, CALIBRATION + EVALUATION])
    labels = {"labels": LABELS} if name in LABELLED else {}
    np.savez(f"{path}-calibration.npz", **{field: calibration})
    np.savez(f"{path}-evaluation.npz", **{field: evaluation})
    np.savez(f"{path}-training.npz", **{field: training}, **labels)
    roles = ["--calibration", f"{path}-calibration.npz", "--evaluation", f"{path}-evaluation.npz"]
    return [str(model), *roles, *arguments]


def _write_state(name: str, path: Path) -> None:
    namespace: dict[str, Any] = {}
    source = path.with_name("modules.py")
    source.write_text(MODULES)
    exec(compile(MODULES, str(source), "exec"), namespace)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = namespace[name]()
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    torch.save(module.state_dict(), path)


def _write_bert(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, num_labels=5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
