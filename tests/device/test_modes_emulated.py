"""Dynamic int8 and integer weights on other CPUs and other engines: the same bits as here.

Without VNNI two neighbouring u8 x s8 products are added in 16 bits; what dynamic layers multiply is
u8 by s8 too, so that their weights are limited as those of static ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.engine import onnxruntime
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.progress import SilentProgress
from edgepack.runtime.device import machine
from support.interpreters import equipped

QEMU = shutil.which("qemu-x86_64")
VNNI = {"avx512_vnni", "avx_vnni"} & set(machine.describe()["isa"] or ())
emulates = pytest.mark.skipif(
    QEMU is None or machine.describe()["arch"] != "x86_64",
    reason="no qemu-x86_64 here (apt-get install qemu-user), or this host is not x86-64",
)
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
"""
MODES = {
    "dynamic": {"mode": "dynamic"},
    "qnnpack": {"mode": "dynamic", "scheme": "qnnpack"},
    "weights": {"mode": "weights"},
    "blocks": {"mode": "weights", "bits": 4, "block": 16},
}


def model(recurrent: bool) -> onnx.ModelProto:
    """Built to saturate: weights near the top of their range, all of one sign.

    Products with biases, two of them of one tensor; or an LSTM of both directions.
    """
    random = np.random.default_rng(5)

    def drawn(*shape: int) -> np.ndarray:
        return (random.uniform(0.6, 1.0, shape) / np.prod(shape[1:])).astype(np.float32)

    node = helper.make_node
    if recurrent:
        constants = {"w": drawn(2, 160, 24), "r": drawn(2, 160, 40), "b": drawn(2, 320)}
        nodes = [node("LSTM", ["x", "w", "r", "b"], ["y"], "lstm", hidden_size=40,
                      direction="bidirectional")]  # fmt: skip
    else:
        constants = {"w": drawn(24, 48), "b": drawn(48, 1)[:, 0], "v": drawn(48, 20),
                     "u": drawn(48, 20)}  # fmt: skip
        nodes = [
            node("MatMul", ["x", "w"], ["product"], "first"),
            node("Add", ["product", "b"], ["sum"], "bias"),
            node("Relu", ["sum"], ["features"], "relu"),
            node("MatMul", ["features", "v"], ["one"], "one"),
            node("MatMul", ["features", "u"], ["two"], "two"),
            node("Add", ["one", "two"], ["y"], "both"),
        ]
    graph = helper.make_graph(
        nodes,
        "stress",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answers(folder: Path, recurrent: bool, options: dict[str, str], *command: str) -> np.ndarray:
    """What an interpreter gives for a model of these options; this one, where none is named."""
    samples = np.random.default_rng(8).uniform(0.7, 1.0, (9, 3, 24)).astype(np.float32)
    quantized = quantize(model(recurrent), None, QuantizeOptions(**options), SilentProgress())
    paths = [folder / name for name in ("model.onnx", "x.npy", "y.npy")]
    paths[0].write_bytes(quantized.model.SerializeToString())
    np.save(paths[1], samples)
    # An emulated interpreter does not find its environment by the path of its link.
    site = {"PYTHONPATH": str(Path(np.__file__).parents[1])} if "-cpu" in command else {}
    done = subprocess.run(
        [*(command or (sys.executable,)), "-c", RUN, *map(str, paths)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **site},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: np.ndarray = np.load(paths[2])
    assert np.std(found) > 0
    return found


@pytest.mark.parametrize("version", ["3.8", "3.10"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recurrent", [False, True], ids=["products", "lstm"])
def test_older_engines_give_the_same(
    recurrent: bool, mode: str, version: str, tmp_path: Path
) -> None:
    python = str(equipped(version, onnxruntime.requirements()))
    here = answers(tmp_path, recurrent, MODES[mode])
    there = answers(tmp_path, recurrent, MODES[mode], python)
    assert there == pytest.approx(here, rel=1e-5)


@emulates
@pytest.mark.parametrize("cpu", ["Haswell", "Skylake-Client"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recurrent", [False, True], ids=["products", "lstm"])
def test_the_same_without_vnni(recurrent: bool, mode: str, cpu: str, tmp_path: Path) -> None:
    python = str(Path(sys.executable).resolve())
    here = answers(tmp_path, recurrent, MODES[mode])
    there = answers(tmp_path, recurrent, MODES[mode], str(QEMU), "-cpu", cpu, python)
    if MODES[mode]["mode"] == "dynamic":
        assert np.array_equal(here, there)
    assert there == pytest.approx(here, rel=1e-5)


@emulates
@pytest.mark.skipif(not VNNI, reason="this host has no VNNI: it saturates as Haswell does")
@pytest.mark.parametrize("recurrent", [False, True], ids=["products", "lstm"])
def test_at_full_range_they_would_saturate(recurrent: bool, tmp_path: Path) -> None:
    options = {"mode": "dynamic", "range": "full"}
    python = str(Path(sys.executable).resolve())
    here = answers(tmp_path, recurrent, options)
    there = answers(tmp_path, recurrent, options, str(QEMU), "-cpu", "Haswell", python)
    assert np.abs(here - there).max() > 0.05 * np.abs(here).max()
