"""A real TensorRT takes what the scheme writes: every network here parses, builds, and multiplies
in integers. The check runs in a process apart, which may die."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepack.engine import tensorrt_rtx
from edgepack.errors import EngineError
from edgepack.passes.half import HalfOptions, half
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.quantize_nets import Arrays, Net, Steps, bright, gated, images, residual, stress
from support.rtx_cases import linear_kernels, needs_rtx, plan_of, profiles_of

pytestmark = needs_rtx


def perceptron() -> onnx.ModelProto:
    """Gemm with and without bias, a factor on it, and weights that two layers share."""
    net = Net()
    x = net.op("Relu", net.gemm("x", 20, 33))
    x = net.op("Gemm", x, net.constant(net.weights(16, 33)), transB=1, alpha=0.5)
    shared, bias = net.constant(net.weights(16, 16)), net.constant(net.weights(16, 4)[:, 0])
    for _ in range(2):
        x = net.op("Relu", net.op("Gemm", x, shared, bias, transB=1))
    return net.model({"x": ["n", 20]}, [net.gemm(x, 16, 5)])


def attention() -> onnx.ModelProto:
    """Projections with their biases behind them, two products of activations, a norm."""
    net, width = Net(), 16
    query, keys, values = (
        net.op(
            "Add",
            net.op("MatMul", "x", net.constant(net.weights(width, width))),
            net.constant(net.weights(width, 4)[:, 0]),
        )
        for _ in range(3)
    )
    scores = net.op("Softmax", net.op("MatMul", query, net.op("Transpose", keys, perm=[0, 2, 1])))
    ones, zeros = (net.constant(np.full(width, v, np.float32)) for v in (1, 0))
    total = net.op("Add", "x", net.op("MatMul", scores, values))
    return net.model({"x": ["n", 6, width]}, [net.op("LayerNormalization", total, ones, zeros)])


def waves() -> onnx.ModelProto:
    """One-dimensional convolutions, one of them depthwise."""
    net = Net()
    x = net.op("Conv", "x", net.constant(net.weights(8, 2, 5)), pads=[2, 2], strides=[2])
    x = net.op("Relu", x)
    x = net.op("Conv", x, net.constant(net.weights(8, 1, 3)), pads=[1, 1], group=8)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model({"x": ["n", 2, 32]}, [net.gemm(x, 8, 3)])


def vector(*shape: int) -> Callable[[int], np.ndarray]:
    return lambda n: np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)


# name -> network, samples, and how many kernels its integer layers become.
NETS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[int], np.ndarray], int]] = {
    "residual": (residual, images, 6),
    "gated": (gated, images, 4),
    "stress": (stress, bright, 8),
    "perceptron": (perceptron, vector(20), 5),
    # The three projections of one input become one product.
    "attention": (attention, vector(6, 16), 1),
    "waves": (waves, vector(2, 32), 3),
}


def quantized(name: str, opset: int = 18) -> onnx.ModelProto:
    make, samples, _ = NETS[name]
    model = make()
    # Nothing in these networks changed its meaning between 18 and 19.
    model.opset_import[0].version = opset
    options = QuantizeOptions(scheme="tensorrt", range="full")
    found: onnx.ModelProto = quantize(model, Arrays(x=samples(16)), options, Steps()).model
    return found


def integer(model: onnx.ModelProto) -> tuple[int, int]:
    """How many kernels of the plan multiply integers, and how many multiply floats."""
    kernels = list(linear_kernels(plan_of(model)).values())
    integers = kernels.count(("int8", "int8"))
    return integers, len(kernels) - integers


@pytest.mark.parametrize("name", NETS)
def test_every_quantized_layer_becomes_an_integer_kernel(name: str) -> None:
    # What is left of attention multiplies activations.
    assert integer(quantized(name)) == (NETS[name][2], 2 if name == "attention" else 0)


@pytest.mark.parametrize("name", NETS)
def test_the_rest_in_fp16_leaves_the_integer_kernels_as_they_are(name: str) -> None:
    _, samples, kernels = NETS[name]
    result = half(quantized(name, 19), Arrays(x=samples(16)), HalfOptions(), Steps())
    stored = {t.data_type for t in result.model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in stored
    assert onnx.TensorProto.FLOAT not in stored
    # In fp16 what is left of attention becomes one kernel, which is none of these.
    assert integer(result.model) == (kernels, 0)


def test_float_networks_have_no_integer_kernels() -> None:
    """What the test above counts is really the quantization's doing."""
    assert integer(residual()) == (0, 6)


def test_the_check_tells_what_it_built(capfd: pytest.CaptureFixture[str]) -> None:
    model = quantized("residual")
    for capability in ("8.6", "8.9"):
        found = tensorrt_rtx.check(model.SerializeToString(), profiles_of(model), capability)
        assert (found.version, found.capability) == ("1.7.1.116", capability)
        assert found.engine_bytes > 100_000
        assert 0 < found.seconds < 600
    # NVIDIA's library talks; the build's own output is for the build.
    assert capfd.readouterr() == ("", "")


def test_the_check_raises_what_the_device_would() -> None:
    model = residual()
    model.graph.node[0].op_type = "Wobble"
    with pytest.raises(EngineError) as caught:
        tensorrt_rtx.check(model.SerializeToString(), profiles_of(model), "8.9")
    assert caught.value.code == "engine-parse"
    assert f"{model.graph.node[0].name} (Wobble)" in caught.value.why
    with pytest.raises(EngineError) as caught:
        tensorrt_rtx.check(residual().SerializeToString(), {}, "8.9")
    assert caught.value.code == "engine-profile"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("kill -SEGV $$", "ended with -11"),
        ("echo cannot load >&2; exit 3", "cannot load"),
        ("exit 0", "ended with 0"),
    ],
)
def test_a_check_that_dies_is_told_and_harms_nothing(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EngineError) as caught:
        tensorrt_rtx.check(b"", {}, "8.9")
    assert caught.value.code == "engine-check-failed"
    assert told in caught.value.why


def test_a_check_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "TIMEOUT_S", 0.05)
    with pytest.raises(EngineError) as caught:
        tensorrt_rtx.check(residual().SerializeToString(), {}, "8.9")
    assert caught.value.code == "engine-check-failed"
    assert "not finished after" in caught.value.why


@pytest.mark.parametrize(
    ("specifier", "capability"),
    [(">=7.5", "8.6"), ("==8.9", "8.9"), ("==8.7", "8.6"), (">=12.0", "12.0"), ("", "8.6")],
)
def test_the_gpu_is_one_of_the_targets_or_stands_in_for_it(specifier: str, capability: str) -> None:
    assert tensorrt_rtx.capability_for(specifier) == capability
