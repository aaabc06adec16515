"""Small networks for the tests of the quantization, written as ONNX, and samples for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepack.data.samples import Batch
from edgepack.ledger import Record


class Arrays:
    """Samples from arrays that hold them along axis 0."""

    origin = "arrays"

    def __init__(self, **inputs: np.ndarray) -> None:
        self.inputs = inputs

    def batches(self, size: int) -> Iterator[Batch]:
        total = len(next(iter(self.inputs.values())))
        for start in range(0, total, size):
            part = {name: array[start : start + size] for name, array in self.inputs.items()}
            yield Batch(part, None, len(next(iter(part.values()))))


class Steps:
    """A progress that counts."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def begin(self, stage: str, total: int | None = None) -> None:
        self.total = total

    def advance(self, steps: int = 1) -> None:
        self.done += steps

    def expect(self, total: int) -> None:
        self.total = total

    def end(self, record: Record) -> None:
        self.total = None

    def warn(self, message: str) -> None:
        raise AssertionError(message)


class Net:
    """Builds an ONNX graph node by node; every method returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        made = [f"{kind.lower()}_{len(self.nodes)}"]
        made += [f"{made[0]}_{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, name=f"n_{made[0]}", **attributes))
        return made[0]

    def weights(self, *shape: int) -> np.ndarray:
        fan = int(np.prod(shape[1:]))
        return (self.random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, groups: int = 1) -> str:
        weight = self.constant(self.weights(cout, cin // groups, kernel, kernel))
        bias = self.constant(self.weights(cout, 4)[:, 0])
        pads = [kernel // 2] * 4
        return self.op("Conv", x, weight, bias, group=groups, pads=pads)

    def gemm(self, x: str, cin: int, cout: int) -> str:
        weight = self.constant(self.weights(cout, cin))
        return self.op("Gemm", x, weight, self.constant(self.weights(cout, 4)[:, 0]), transB=1)

    def model(
        self, inputs: dict[str, Sequence[int | str]], outputs: Sequence[str], opset: int = 18
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model)
        del inferred.graph.value_info[:]
        onnx.checker.check_model(inferred, full_check=True)
        return inferred


def images(count: int, channels: int = 3, size: int = 16, seed: int = 1) -> np.ndarray:
    """(count, channels, size, size) smooth noise, neighbouring pixels alike."""
    noise = np.random.default_rng(seed).standard_normal((count, channels, size, size))
    smooth = (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)) / np.sqrt(3)
    return smooth.astype(np.float32)


def residual() -> onnx.ModelProto:
    """A small ResNet: strides by pooling, two residual blocks, a mean, a Gemm."""
    net = Net()
    x = net.op("MaxPool", net.op("Relu", net.conv("x", 3, 16)), kernel_shape=[2, 2], strides=[2, 2])
    for _ in range(2):
        inner = net.conv(net.op("Relu", net.conv(x, 16, 16)), 16, 16)
        x = net.op("Relu", net.op("Add", x, inner))
    axes = net.constant(np.array([2, 3]))
    x = net.op("ReduceMean", x, axes, keepdims=0)
    return net.model({"x": ["n", 3, 16, 16]}, [net.gemm(x, 16, 10)])


def gated() -> onnx.ModelProto:
    """SiLU, squeeze and excitation, a concatenation, pools: every integer kernel but Gemm."""
    net = Net()
    x = net.conv("x", 3, 8)
    x = net.op("Mul", x, net.op("Sigmoid", x))
    pooled = net.op("GlobalAveragePool", x)
    squeezed = net.op("Relu", net.conv(pooled, 8, 4, 1))
    gate = net.op("Sigmoid", net.conv(squeezed, 4, 8, 1))
    gated = net.op("Mul", x, gate)
    x = net.op("Concat", gated, net.op("LeakyRelu", x, alpha=0.1), axis=1)
    x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.model({"x": ["n", 3, 16, 16]}, [net.conv(x, 16, 4)])


def stress() -> onnx.ModelProto:
    """Built to saturate without VNNI: large weights of one sign beside each other."""
    net = Net(5)

    def positive(*shape: int) -> np.ndarray:
        # Uniform weights near the top of the range: most pairs exceed it.
        return net.random.uniform(0.6, 1.0, shape).astype(np.float32) / np.float32(
            np.prod(shape[1:])
        )

    def conv(x: str, cin: int, cout: int, kernel: int, groups: int = 1) -> str:
        weight = net.constant(positive(cout, cin // groups, kernel, kernel))
        made = net.op("Conv", x, weight, group=groups, pads=[kernel // 2] * 4)
        return net.op("Relu", made)

    x = conv("x", 3, 8, 3)
    x = conv(x, 8, 12, 3)
    x = conv(x, 12, 12, 5, groups=4)
    x = conv(x, 12, 12, 3, groups=12)
    x = conv(x, 12, 24, 3, groups=12)
    x = conv(x, 24, 15, 1)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    for cin, cout in ((15, 33), (33, 7)):
        x = net.op("Gemm", x, net.constant(positive(cout, cin)), transB=1)
        x = net.op("Relu", x) if cout == 33 else x
    return net.model({"x": ["n", 3, 16, 16]}, [x])


def bright(count: int) -> np.ndarray:
    """(count, 3, 16, 16) values near the top of their range."""
    random = np.random.default_rng(8)
    return random.uniform(0.7, 1.0, (count, 3, 16, 16)).astype(np.float32)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


def snr_db(real: np.ndarray, found: np.ndarray) -> float:
    error = np.square(real.astype(np.float64) - found).sum()
    with np.errstate(divide="ignore"):  # the same numbers: infinite
        return float(10 * np.log10(np.square(real.astype(np.float64)).sum() / error))
