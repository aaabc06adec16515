"""Small int8 bundles, built as a user builds them: an ONNX file through `edgepack build`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support import ROOT

SIZE = 12
CLASSES = 6
CALIBRATION = 100
EVALUATION = 40


def mixed_onnx(seed: int = 7) -> onnx.ModelProto:
    """Every operator that becomes integer, once or more: scores.

    Full, depthwise and 1x1 convolutions, a residual, a gate of sigmoids, a concatenation, both
    poolings, a mean, a product of matrices and a Gemm.

    Args:
        seed: of its weights.
    """
    node = helper.make_node
    same = {"pads": [1, 1, 1, 1]}
    return _model(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "stem", **same),
            node("Relu", ["c1"], ["r1"], "stem_relu"),
            node("Conv", ["r1", "w2", "b2"], ["c2"], "depthwise", group=8, **same),
            node("Clip", ["c2", "zero", "six"], ["r2"], "relu6"),
            node("Conv", ["r2", "w3", "b3"], ["c3"], "project"),
            node("Add", ["c3", "r1"], ["sum"], "residual"),
            node("GlobalAveragePool", ["sum"], ["squeezed"], "squeeze"),
            node("Conv", ["squeezed", "w3", "b3"], ["excited"], "excite"),
            node("Sigmoid", ["excited"], ["gate"], "gate"),
            node("Mul", ["sum", "gate"], ["gated"], "gated"),
            node("Concat", ["gated", "r1"], ["both"], "both", axis=1),
            node("AveragePool", ["both"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["pooled", "w4", "b4"], ["c4"], "wide"),
            node("LeakyRelu", ["c4"], ["r4"], "leaky", alpha=0.1),
            node("MaxPool", ["r4"], ["most"], "most", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["most"], ["flat"], "flatten"),
            node("MatMul", ["flat", "w5"], ["mixed"], "mix"),
            node("Gemm", ["mixed", "w6", "b6"], ["scores"], "classify", transB=1),
        ],
        {
            "w1": (8, 3, 3, 3),
            "w2": (8, 1, 3, 3),
            "w3": (8, 8, 1, 1),
            "w4": (16, 16, 3, 3),
            "w5": (64, 32),
            "w6": (CLASSES, 32),
        },
        {"b1": 8, "b2": 8, "b3": 8, "b4": 16, "b6": CLASSES},
        {"zero": 0.0, "six": 6.0},
        seed=seed,
    )


def saturating_onnx() -> onnx.ModelProto:
    """Convolutions of 3 and 8 input channels and a Gemm, all weights positive: scores.

    With inputs that reach the top of their range, two neighbouring u8 x s8 products leave 16
    bits wherever the weights use all of s8.
    """
    node = helper.make_node
    return _model(
        [
            node("Conv", ["image", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], "first_relu"),
            node("Conv", ["r1", "w2", "b2"], ["c2"], "second", strides=[2, 2]),
            node("Relu", ["c2"], ["r2"], "second_relu"),
            node("GlobalAveragePool", ["r2"], ["p"], "mean"),
            node("Flatten", ["p"], ["f"], "flatten"),
            node("Gemm", ["f", "w3", "b3"], ["scores"], "classify", transB=1),
        ],
        {"w1": (8, 3, 3, 3), "w2": (16, 8, 3, 3), "w3": (CLASSES, 16)},
        {"b1": 8, "b2": 16, "b3": CLASSES},
        {},
        positive=True,
    )


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, tuple[int, ...]],
    biases: dict[str, int],
    scalars: dict[str, float],
    *,
    positive: bool = False,
    seed: int = 7,
) -> onnx.ModelProto:
    """A classifier of pictures; weights are drawn for outputs about as large as the inputs."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    for name, shape in weights.items():
        drawn = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        constants[name] = np.abs(drawn) if positive else drawn
    constants |= {name: rng.normal(size=size) / 10 for name, size in biases.items()}
    constants |= {name: np.array(value) for name, value in scalars.items()}
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


# Options of a build whose target does not run here.
UNRUN = ("--no-emulate", "--allow-unverified")


def pictures(count: int, seed: int) -> np.ndarray:
    """(count, 3, SIZE, SIZE) float32 in [0, 1]: smooth patches, many at the top of the range."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1.6, size=(count, 3, SIZE // 4, SIZE // 4))
    fine = np.kron(coarse, np.ones((4, 4))) + rng.normal(scale=0.05, size=(count, 3, SIZE, SIZE))
    return np.clip(fine, 0, 1).astype(np.float32)


@cache
def build(
    base: Path,
    network: Callable[[], onnx.ModelProto],
    chain: str = "quantize",
    target: str = "cpu-fbgemm",
    options: tuple[str, ...] = (),
) -> Path:
    """A bundle, made by the command line in a cache of its own.

    Args:
        base: the session's temporary folder; the same arguments give the same bundle once more.
        network: one of the functions above.
        chain: as `--chain` takes it.
        target: as `--target` takes it.
        options: further ones of the command.
    """
    folder = Path(tempfile.mkdtemp(dir=base, prefix="int8-"))
    # Nothing here runs another architecture or a GPU: the cache has no emulator.
    if target != "cpu-fbgemm":
        options = (*options, *UNRUN)
    done = run_build(folder, network, chain, target, folder / "cache", options)
    assert done.returncode == 0, done.stderr
    return folder / "net.edgepack"


def run_build(
    folder: Path,
    network: Callable[[], onnx.ModelProto],
    chain: str,
    target: str,
    cache: Path,
    options: tuple[str, ...] = (),
    path: str = os.environ.get("PATH", os.defpath),
) -> subprocess.CompletedProcess[str]:
    """Build `net.edgepack` in a folder, which gets the network and its samples.

    Args:
        folder: empty.
        network, chain, target, options: as `build` takes them.
        cache: the stage cache.
        path: where programs are found.
    """
    onnx.save(network(), folder / "net.onnx")
    for role, count, seed in (("calibration", CALIBRATION, 1), ("evaluation", EVALUATION, 2)):
        np.savez(folder / f"{role}.npz", image=pictures(count, seed))
    return subprocess.run(
        [
            *(sys.executable, "-m", "edgepack", "build", "net.onnx", "--target", target),
            *("--calibration", "calibration.npz", "--evaluation", "evaluation.npz"),
            *("--chain", chain, "--latency", "none", "--quiet", "--output", "net.edgepack"),
            *options,
        ],
        cwd=folder,
        env={
            **os.environ,
            "EDGEPACK_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
            "PATH": path,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
