"""onnxruntime's CUDA provider as an engine: what it accepts, what it names, what it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from packaging.requirements import Requirement

from edgepack import engine
from edgepack.engine import onnxruntime_cuda
from edgepack.errors import EngineError
from edgepack.runtime.session.rounding import round_halves
from edgepack.spec import target
from support.half_nets import converted, naive
from support.linear import linear_onnx
from support.quantize_nets import images, residual

CUDA = target.load("cuda-fp16")


def test_it_names_every_fp16_tensor_of_a_model_that_half_did_not_make() -> None:
    bare = naive(residual())
    del bare.graph.value_info[:]
    built = onnxruntime_cuda.build(bare.SerializeToString(), CUDA, {})
    model = onnx.load_model_from_string(built.model)
    named = {v.name for v in model.graph.value_info}
    made = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    # Whatever a node makes is fp16 here but what the last Cast makes.
    assert named == made - outputs
    assert built.details["half_tensors"] == len(named)
    assert len(round_halves(built.model)) > len(built.model)
    assert any("not run on a GPU" in warning for warning in built.warnings)


def test_a_model_of_half_needs_no_more_names() -> None:
    model = converted(residual(), {"x": images(8)}).model
    built = onnxruntime_cuda.build(model.SerializeToString(deterministic=True), CUDA, {})
    assert built.model == model.SerializeToString(deterministic=True)


def test_a_float32_model_is_told_as_such() -> None:
    model, _ = linear_onnx()
    built = onnxruntime_cuda.build(model.SerializeToString(), CUDA, {})
    assert built.details["half_tensors"] == 0
    assert round_halves(built.model) == built.model
    assert any("runs in float32 on the GPU" in note for note in built.notes)


@pytest.mark.parametrize(("field", "value"), [("opset", 22), ("ir_version", 11)])
def test_an_onnx_that_the_oldest_release_does_not_read(field: str, value: int) -> None:
    model, _ = linear_onnx()
    if field == "opset":
        model.opset_import[0].version = value
    else:
        model.ir_version = value
    with pytest.raises(EngineError) as error:
        onnxruntime_cuda.build(model.SerializeToString(), CUDA, {})
    assert error.value.code == "engine-too-old"


@pytest.mark.parametrize("fallback", ["onnxruntime", ""])
def test_the_device_needs_one_onnxruntime(fallback: str) -> None:
    lines = engine.requirements(replace(CUDA, fallback=fallback)).splitlines()
    found = [Requirement(line) for line in lines]
    assert {requirement.name for requirement in found} == {"numpy", "onnxruntime-gpu"}
    for python in ("3.8", "3.9", "3.10", "3.11", "3.13"):
        exact = [r for r in found if r.marker and r.marker.evaluate({"python_version": python})]
        assert {r.name for r in exact} == {"numpy", "onnxruntime-gpu"}
        assert all(str(r.specifier).startswith("==") for r in exact)
        (gpu,) = (r for r in exact if r.name == "onnxruntime-gpu")
        assert gpu.extras == {"cuda", "cudnn"}


def test_the_profile_says_what_the_wheels_can() -> None:
    assert CUDA.engine == "onnxruntime-cuda"
    assert CUDA.fallback == "onnxruntime"
    assert CUDA.chain == "half"
    assert CUDA.compute_capability == ">=7.5"
    # Every tensor is rounded: the same bits are asked of nobody.
    assert set(CUDA.fidelity) == {"snr_db"}
    assert CUDA.fidelity["snr_db"] < CUDA.quality["snr_db"]


def test_types_are_those_that_onnxruntime_finds() -> None:
    """Names alone would round what is not fp16."""
    import onnxruntime

    model = converted(residual(), {"x": images(8)}, keep=("n_conv_3",)).model
    named = {v.name for v in model.graph.value_info}
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    made = [name for node in model.graph.node for name in node.output]
    outputs = {value.name for value in model.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made if n not in outputs)
    session = onnxruntime.InferenceSession(opened.SerializeToString())
    half = {v.name for v in session.get_outputs() if v.type == "tensor(float16)"}
    assert half == named
    constants = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert all(np.isfinite(onnx.numpy_helper.to_array(t)).all() for t in constants)
