"""A bundle of one product of matrices, and what goes into it."""

from __future__ import annotations

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


def reshaping() -> bytes:
    """x [batch, 8] as [1, 8]: fits the signature with any batch, and fails with all but 1."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [1, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


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
