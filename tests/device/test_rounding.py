"""On every Python with the onnxruntime that it has, a CPU in a GPU's place rounds as a GPU does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import bundle
from edgepack.engine import onnxruntime
from edgepack.runtime.bundle.engines import CUDA, ONNXRUNTIME, Variant
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor
from support.bundle_cases import run_bundle
from support.interpreters import equipped
from support.linear import linear_contents, measured

VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")


def there_and_back() -> onnx.ModelProto:
    """(x + 2048) - 2048 in fp16, whose numbers from 2048 on are the even ones."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["h", "c"], ["far"]),
        helper.make_node("Sub", ["far", "c"], ["back"]),
        helper.make_node("Cast", ["back"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "there-and-back",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.float16(2048), "c")],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 8])
            for name in ("h", "far", "back")
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a GPU, whose answers numpy gave: it rounds fp16 after each step."""
    feeds = np.random.default_rng(0).uniform(-30, 30, (5, 1, 8)).astype(np.float32)
    far = feeds.astype(np.float16) + np.float16(2048)
    answers = [(far - np.float16(2048)).astype(np.float32)]
    assert not np.array_equal(answers[0], feeds)
    made = tmp_path_factory.mktemp("rounding") / "there-and-back.edgepack"
    contents = replace(
        linear_contents(),
        model=there_and_back().SerializeToString(),
        outputs=[Tensor("y", "float32", ("batch", 8), "values")],
        variants=(Variant("gpu", CUDA), Variant("cpu", ONNXRUNTIME)),
        reference=[feeds],
        original=answers,
        parts={"y": [Part(None, (), 1.0)]},
        built=answers,
        gates={"quality": {"snr_db": 60}, "fidelity": {"bit_exact": True}},
    )
    bundle.write(made, measured(contents))
    return made


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cpu_rounds_to_the_bits_of_fp16(path: Path, version: str) -> None:
    python = str(equipped(version, onnxruntime.requirements()))
    done = run_bundle(path, "verify", "--json", "--stand-in", "--allow-unverified", python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["fidelity"]["outputs"]["y"]["bit_exact"]
    assert verdict["variant"]["engine"] == ONNXRUNTIME
