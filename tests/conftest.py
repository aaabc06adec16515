"""Small real things that several tests need: networks, samples, bundles."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import bundle, device, engine
from edgepack.device import Local
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.commands.run import read_npz
from edgepack.runtime.parity.metrics import compare
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor

ROOT = Path(__file__).resolve().parents[1]

# What was started in the background ignores interrupts, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests that run side by side take one core each: more threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ("build_cases", "bundle_cases", "gpu_standin", "ssh_server", "training_cases")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep tests away from the user's cache and policy."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder.with_name("config")))
        patch.delenv("EDGEPACK_SIGNERS", raising=False)
        yield folder


def linear_onnx() -> tuple[onnx.ModelProto, np.ndarray]:
    """y = x @ w, with its weights [8, 3]."""
    weights = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "project")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model, weights


def linear_contents() -> bundle.Contents:
    """What goes into a bundle of `linear_onnx`, without answers of its own."""
    model, weights = linear_onnx()
    feeds = np.random.default_rng(1).normal(size=(5, 1, 8)).astype(np.float32)
    return bundle.Contents(
        name="linear",
        target="cpu-fbgemm",
        device={"arch": "x86_64", "isa": ["avx2"], "python": "3.8"},
        inputs=[Tensor("x", "float32", ("batch", 8))],
        outputs=[Tensor("y", "float32", ("batch", 3), "scores")],
        model=model.SerializeToString(deterministic=True),
        variants=[Variant("onnxruntime", "onnxruntime", {"engine_version": "1.19"})],
        reference=[feeds],
        original=[feeds @ weights],
        built=None,
        gates={"quality": {"snr_db": 60, "agreement": 0.9}, "fidelity": {"snr_db": 40}},
        metric="",
        parts={"y": [Part(None, (), float((feeds @ weights).var()))]},
        provenance={},
        tools={},
        requirements=engine.ENGINES["onnxruntime"].requirements(),
    )


def measured(contents: bundle.Contents) -> bundle.Contents:
    """Contents with the quality of their own answers, as a build that accepts them records it."""
    pairs = [
        ([array[i] for array in contents.original], [array[i] for array in contents.built or ()])
        for i in range(len(contents.reference[0]))
    ]
    outputs = compare(contents.outputs, contents.parts, pairs, contents.inputs)
    quality = {
        "on": "evaluation", "samples": len(pairs), "outputs": outputs, "metric": None,
        "reference": outputs, "passed": True,
    }  # fmt: skip
    return replace(contents, quality=quality)


@pytest.fixture(scope="session")
def linear_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle of `linear_onnx`, its answers given by its own loader."""
    folder = tmp_path_factory.mktemp("linear")
    path, answers = folder / "linear.edgepack", folder / "answers.npz"
    contents = linear_contents()
    bundle.write(path, contents)
    with Local() as host:
        device.ask(host, str(path), "run", "--output", str(answers))
    bundle.write(path, measured(replace(contents, built=[read_npz(str(answers))["y"]])))
    return path


def entry(name: str) -> zipfile.ZipInfo:
    """An entry as a bundle has it."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return info


def run_bundle(path: Path, *arguments: str, python: str = sys.executable):
    """Run a bundle as a user would, in a process of its own."""
    return subprocess.run(
        [python, str(path), *arguments], capture_output=True, text=True, timeout=120
    )
