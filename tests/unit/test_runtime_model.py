"""`load` and the call: what fits is computed, and what does not is told by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgepack import bundle, load
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.errors import DeviceError, EdgepackError, GateError, InputError
from edgepack.runtime.model import Model
from edgepack.runtime.session.feeds import find_fault
from edgepack.runtime.session.onnx_session import OnnxSession
from edgepack.runtime.tensor import Tensor
from support.linear import linear_contents, linear_onnx, reshaping

IMAGE = np.ones((2, 8), np.float32)


@pytest.fixture(scope="module")
def linear(linear_bundle: Path) -> Model:
    return load(linear_bundle)


def test_call(linear: Model) -> None:
    _, weights = linear_onnx()
    outputs = linear(x=IMAGE)
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], IMAGE @ weights, rtol=1e-5)
    np.testing.assert_array_equal(linear.run({"x": IMAGE})["y"], outputs["y"])


def test_signature(linear: Model) -> None:
    assert [str(t) for t in linear.inputs] == ["x:float32:batch,8"]
    assert [(t.name, t.kind) for t in linear.outputs] == [("y", "scores")]
    assert linear.index.name == "linear"


def test_a_path_may_be_a_string(linear_bundle: Path) -> None:
    assert load(str(linear_bundle), threads=1)(x=IMAGE)["y"].shape == (2, 3)


def test_any_memory_layout_is_taken(linear: Model) -> None:
    image = np.arange(16, dtype=np.float32).reshape(2, 8)
    wanted = linear(x=image)["y"]
    for array in (np.asfortranarray(image), np.repeat(image, 2, axis=1)[:, ::2]):
        assert not array.flags.c_contiguous
        np.testing.assert_array_equal(linear(x=array)["y"], wanted)


def test_inputs_may_be_lists_tensors_and_given_by_position(linear: Model) -> None:
    expected = linear(x=IMAGE)["y"]
    tensor = torch.ones(2, 8, requires_grad=True)
    for outputs in (
        linear(IMAGE),
        linear(IMAGE.tolist()),
        linear(x=[[1] * 8] * 2),
        linear(tensor),
        linear(x=tensor * 1),
    ):
        np.testing.assert_array_equal(outputs["y"], expected)
    with pytest.raises(InputError, match="input-names") as caught:
        linear(IMAGE, IMAGE)
    assert "argument 2 is unknown" in caught.value.why
    with pytest.raises(InputError, match="input-names"):
        linear(IMAGE, x=IMAGE)
    with pytest.raises(InputError, match="input-type"):
        linear(IMAGE.astype(np.float64))


def test_a_model_shows_its_inputs_and_outputs(linear: Model) -> None:
    assert repr(linear) == (
        "Model(linear for cpu-fbgemm in onnxruntime: x:float32:batch,8 -> y:float32:batch,3)"
    )


MISUSES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input-names", "x is missing"),
    ({"x": IMAGE, "z": IMAGE}, "input-names", "z is unknown"),
    ({"image": IMAGE}, "input-names", "x is missing; image is unknown"),
    ({"x": IMAGE.astype(np.float64)}, "input-type", "x is float64:2,8"),
    ({"x": IMAGE.astype(np.int64)}, "input-type", "x is int64:2,8"),
    ({"x": IMAGE.astype(">f4")}, "input-type", "x is float32:2,8 in the other byte order"),
    ({"x": None}, "input-type", "x is a NoneType"),
    ({"x": None}, "input-type", "x is a NoneType"),
    ({"x": "picture.png"}, "input-type", "x is a str"),
    ({"x": IMAGE[0]}, "input-shape", "x is float32:8"),
    ({"x": IMAGE[:, :7]}, "input-shape", "x is float32:2,7"),
    ({"x": IMAGE[None]}, "input-shape", "x is float32:1,2,8"),
    ({"x": np.array(1, np.float32)}, "input-shape", "x is float32:"),
    ({"x": np.float32(1)}, "input-type", "x is a float32"),
]


@pytest.mark.parametrize(("inputs", "code", "why"), MISUSES)
def test_misuse(inputs: dict[str, Any], code: str, why: str, linear: Model) -> None:
    with pytest.raises(EdgepackError) as caught:
        linear(**inputs)
    assert (caught.value.code, caught.value.why) == (code, why)
    assert caught.value.hint == "the model takes x:float32:batch,8"


@pytest.mark.parametrize("inputs", [None, [IMAGE], IMAGE, "x", [("x", IMAGE)]])
def test_what_is_no_mapping(inputs: Any, linear: Model) -> None:
    with pytest.raises(InputError) as caught:
        linear.run(inputs)
    assert caught.value.code == "input-names"
    assert caught.value.why.endswith("not arrays by name")


def test_an_engine_that_would_repeat_the_shorter_batch_is_not_asked(tmp_path: Path) -> None:
    """onnxruntime adds a batch of 1 to one of 2; of one name they have to be of one size."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8]) for n in "aby"]
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    graph = helper.make_graph(nodes, "sum", values[:2], values[2:])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    feeds = np.ones((2, 1, 8), np.float32)
    contents = replace(
        linear_contents(),
        inputs=[Tensor(name, "float32", ("batch", 8)) for name in "ab"],
        outputs=[Tensor("y", "float32", ("batch", 8))],
        model=model.SerializeToString(),
        reference=[feeds, feeds],
        original=[feeds + feeds],
    )
    path = tmp_path / "sum.edgepack"
    bundle.write(path, contents)
    found = load(path)
    assert (found(a=IMAGE, b=IMAGE)["y"] == 2 * IMAGE).all()
    with pytest.raises(InputError) as caught:
        found(a=IMAGE, b=IMAGE[:1])
    assert (caught.value.code, caught.value.why) == ("input-shape", "b is float32:1,8")


@pytest.mark.parametrize("harm", ["unlink", "replace", "truncate"])
def test_a_loaded_bundle_may_go_away(harm: str, linear_bundle: Path, tmp_path: Path) -> None:
    """A service that holds a model sees its file replaced; its errors stay the loader's own."""
    path, program = tmp_path / "x.edgepack", tmp_path / "program.py"
    path.write_bytes(linear_bundle.read_bytes())
    program.write_text(
        f"""
import os, sys
sys.path.insert(0, {str(path)!r})
from runtime import load
from runtime.errors import InputError
model = load()
if {harm!r} == "unlink":
    os.unlink({str(path)!r})
else:
    with open({str(path)!r}, "r+b") as file:
        file.truncate(99)
        file.write(b"x" * 400_000 if {harm!r} == "replace" else b"")
try:
    model(y=1)
except InputError as error:
    print(error.code)
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.stdout == "input-names\n", done.stderr


@pytest.mark.parametrize("kind", [EdgepackError, DeviceError, InputError, GateError])
def test_an_error_comes_whole_out_of_another_process(kind: type[EdgepackError]) -> None:
    error = kind("code", "what", why="why", hint="hint")
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is kind
    assert copied.to_json() == error.to_json()
    assert str(copied) == str(error)


def test_nothing_is_wrong_with_what_fits(linear: Model) -> None:
    assert find_fault({"x": IMAGE}, linear.inputs) is None


def test_axes_of_one_name_have_one_size() -> None:
    expected = (Tensor("a", "int64", ("n", "m")), Tensor("b", "int64", ("m",)))
    a, b = np.zeros((2, 3), np.int64), np.zeros(3, np.int64)
    assert find_fault({"a": a, "b": b}, expected) is None
    fault = find_fault({"a": a, "b": b[:2]}, expected)
    assert fault is not None
    assert (fault.code, fault.why) == ("input-shape", "b is int64:2")


def test_an_engine_that_fails_on_what_fits(tmp_path: Path) -> None:
    path = tmp_path / "reshape.edgepack"
    bundle.write(path, replace(linear_contents(), model=reshaping()))
    model = load(path)
    assert model(x=IMAGE[:1])["y"].shape == (1, 8)
    with pytest.raises(DeviceError) as caught:
        model(x=IMAGE)
    assert caught.value.code == "engine-failed"
    assert "Reshape" in caught.value.why


def test_a_model_that_the_engine_does_not_take() -> None:
    with pytest.raises(DeviceError) as caught:
        OnnxSession(b"not an ONNX")
    assert caught.value.code == "engine-refused"
    model = onnx.load_model_from_string(reshaping())
    model.opset_import[0].version = 999
    with pytest.raises(DeviceError) as caught:
        OnnxSession(model.SerializeToString())
    assert caught.value.code == "engine-refused"
    assert "999" in caught.value.why


def bundle_with(variant: Variant, path: Path) -> Path:
    bundle.write(path, replace(linear_contents(), variants=[variant]))
    return path


def test_an_engine_that_is_too_old(tmp_path: Path) -> None:
    variant = Variant("newer", "onnxruntime", {"engine_version": ">=99.1"})
    with pytest.raises(DeviceError) as caught:
        load(bundle_with(variant, tmp_path / "newer.edgepack"))
    assert caught.value.code == "engine-version"
    assert "it needs >=99.1" in caught.value.why
    assert caught.value.hint == "pip install 'onnxruntime>=99.1'"


def test_an_engine_that_the_loader_has_not(tmp_path: Path) -> None:
    with pytest.raises(EdgepackError) as caught:
        load(bundle_with(Variant("other", "armnn"), tmp_path / "other.edgepack"))
    assert caught.value.code == "bundle-engine"
