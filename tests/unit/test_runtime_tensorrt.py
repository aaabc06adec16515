"""The TensorRT session's own part: what it copies where, when, and what it makes of a refusal.

Neither TensorRT nor a GPU is here. `tensorrt` is a stand-in (gpu_standin/modules/tensorrt.py)
whose engine onnxruntime computes on the bytes at the addresses that the session gave, over a
stand-in for CUDA that checks every copy; so a right answer proves the way there and back, and
nothing about TensorRT. The test with TensorRT-RTX, which is real, stands at the end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgepack.runtime.errors import DeviceError, InputError
from edgepack.runtime.session import cuda
from edgepack.runtime.session.tensorrt_build import Options, build
from edgepack.runtime.session.tensorrt_session import TensorrtSession
from edgepack.runtime.tensor import Tensor
from support import ROOT
from support import gpu_standin as standins
from support.gpu_standin import GPU, StandIn
from support.linear import linear_onnx

X, Y = Tensor("x", "float32", ("batch", 8)), Tensor("y", "float32", ("batch", 3), "scores")
LINEAR = linear_onnx()[0].SerializeToString()


@pytest.fixture
def log(gpu_standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A device with that GPU and that TensorRT, in this process."""
    for name, value in {
        "STANDIN_GPU": GPU,
        "STANDIN_LIBRARY": str(gpu_standin.library),
        "STANDIN_LOG": str(tmp_path / "log"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cuda, "libraries", lambda: [str(gpu_standin.library)])
    monkeypatch.syspath_prepend(str(standins.FOLDER / "modules"))
    before = sys.modules.pop("tensorrt", None)
    yield tmp_path / "log"
    del sys.modules["tensorrt"]
    if before is not None:
        sys.modules["tensorrt"] = before


def engine_of(model: bytes, **profiles: Any) -> bytes:
    trt = importlib.import_module("tensorrt")
    return build(trt, model, Options(profiles=profiles), b"", lambda seconds: None)[0]


def linear() -> TensorrtSession:
    return TensorrtSession(engine_of(LINEAR, x=((1, 8), (1, 8), (4, 8))), [X], [Y])


def graph_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list]], outputs: dict[str, tuple]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [helper.make_tensor_value_info(name, *of) for name, of in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def calls(log: Path, name: str) -> int:
    return log.read_text().count(name + " ")


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def expected(array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(LINEAR, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": array})[0]
    return found


@pytest.mark.usefixtures("log")
def test_answers_at_every_shape() -> None:
    session = linear()
    for count in (1, 4, 2, 2, 3, 1):
        np.testing.assert_array_equal(
            session.run({"x": rows(count, count)})["y"], expected(rows(count, count))
        )


@pytest.mark.usefixtures("log")
def test_any_memory_layout_is_fed() -> None:
    image, session = rows(4), linear()
    for array in (np.asfortranarray(image), np.repeat(image, 2, axis=1)[:, ::2]):
        assert not array.flags.c_contiguous
        np.testing.assert_array_equal(session.run({"x": array})["y"], expected(image))


@pytest.mark.usefixtures("log")
def test_an_answer_stays_as_it_was_given() -> None:
    session = linear()
    first = session.run({"x": rows(2, 1)})["y"]
    kept = first.copy()
    session.run({"x": rows(2, 2)})
    np.testing.assert_array_equal(first, kept)


def test_memory_is_taken_once_per_shape_and_given_back(log: Path) -> None:
    session = linear()
    for _ in range(5):
        session.run({"x": rows(2)})
    assert calls(log, "cudaMalloc") == 2  # x and y
    session.run({"x": rows(1)})
    assert calls(log, "cudaMalloc") == 2  # a smaller shape fits
    session.run({"x": rows(4)})
    assert (calls(log, "cudaMalloc"), calls(log, "cudaFree")) == (4, 2)
    del session
    gc.collect()
    assert (calls(log, "cudaMalloc"), calls(log, "cudaFree")) == (4, 4)
    assert calls(log, "cudaStreamDestroy") == 1


def test_the_order_of_calls(log: Path) -> None:
    session = linear()
    session.run({"x": rows(2)})
    log.unlink()
    session.run({"x": rows(2)})
    assert log.read_text().splitlines() == [
        "cudaMemcpyAsync 64 1",  # x, to the GPU
        "cudaMemcpyAsync 24 2",  # y, from it
        "cudaStreamSynchronize 0 0",
    ]


@pytest.mark.usefixtures("log")
def test_element_types_that_the_engine_has_not() -> None:
    """8.5 has no int64, and no TensorRT has float64: both are converted, there and back."""
    model = graph_of(
        [
            helper.make_node("Add", ["ids", "ids"], ["twice"]),
            helper.make_node("Neg", ["exact"], ["negative"]),
            helper.make_node("Not", ["mask"], ["inverse"]),
            helper.make_node("Identity", ["half"], ["same"]),
        ],
        {
            "ids": (TensorProto.INT64, ["n"]),
            "exact": (TensorProto.DOUBLE, [2]),
            "mask": (TensorProto.BOOL, [3]),
            "half": (TensorProto.FLOAT16, [1, 2]),
        },
        {
            "twice": (TensorProto.INT64, ["n"]),
            "negative": (TensorProto.DOUBLE, [2]),
            "inverse": (TensorProto.BOOL, [3]),
            "same": (TensorProto.FLOAT16, [1, 2]),
        },
    )
    inputs = [
        Tensor("ids", "int64", ("n",)),
        Tensor("exact", "float64", (2,)),
        Tensor("mask", "bool", (3,)),
        Tensor("half", "float16", (1, 2)),
    ]
    outputs = [
        Tensor("twice", "int64", ("n",)),
        Tensor("negative", "float64", (2,)),
        Tensor("inverse", "bool", (3,)),
        Tensor("same", "float16", (1, 2)),
    ]
    session = TensorrtSession(engine_of(model, ids=((1,), (2,), (9,))), inputs, outputs)
    feed = {
        "ids": np.array([1, -5, 1 << 29]),
        "exact": np.array([0.5, -2.0]),
        "mask": np.array([True, False, True]),
        "half": np.array([[1, 2]], np.float16),
    }
    found = session.run(feed)
    np.testing.assert_array_equal(found["twice"], 2 * feed["ids"])
    np.testing.assert_array_equal(found["negative"], -feed["exact"])
    np.testing.assert_array_equal(found["inverse"], ~feed["mask"])
    np.testing.assert_array_equal(found["same"], feed["half"])
    assert {name: str(array.dtype) for name, array in found.items()} == {
        tensor.name: tensor.dtype for tensor in outputs
    }
    with pytest.raises(InputError) as caught:
        session.run({**feed, "ids": np.array([1 << 40])})
    assert caught.value.code == "input-range"
    np.testing.assert_array_equal(session.run(feed)["twice"], 2 * feed["ids"])


@pytest.mark.usefixtures("log")
def test_an_output_whose_shape_depends_on_the_values() -> None:
    model = graph_of(
        [helper.make_node("NonZero", ["x"], ["where"])],
        {"x": (TensorProto.FLOAT, [6])},
        {"where": (TensorProto.INT64, [1, "found"])},
    )
    outputs = [Tensor("where", "int64", (1, "found"))]
    session = TensorrtSession(engine_of(model), [Tensor("x", "float32", (6,))], outputs)
    for values in ([0, 1, 0, 2, 3, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1], [0] * 6):
        array = np.array(values, np.float32)
        np.testing.assert_array_equal(session.run({"x": array})["where"], [np.flatnonzero(array)])


@pytest.mark.usefixtures("log")
def test_no_memory_for_such_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph_of(
        [helper.make_node("NonZero", ["x"], ["where"])],
        {"x": (TensorProto.FLOAT, [6])},
        {"where": (TensorProto.INT64, [1, "found"])},
    )
    outputs = [Tensor("where", "int64", (1, "found"))]
    session = TensorrtSession(engine_of(model), [Tensor("x", "float32", (6,))], outputs)
    session.run({"x": np.zeros(6, np.float32)})
    monkeypatch.setenv("STANDIN_FAIL", "cudaMalloc")
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            session.run({"x": np.ones(6, np.float32)})
        assert (caught.value.code, "out of memory" in caught.value.why) == ("cuda-failed", True)
    monkeypatch.delenv("STANDIN_FAIL")
    np.testing.assert_array_equal(
        session.run({"x": np.ones(6, np.float32)})["where"], [np.arange(6)]
    )


MISUSES: list[tuple[dict[str, Any], str]] = [
    ({}, "input-names"),
    ({"x": rows(1), "z": rows(1)}, "input-names"),
    ({"x": rows(1).astype(np.float64)}, "input-type"),
    ({"x": rows(1)[0]}, "input-shape"),
    ({"x": rows(1)[:, :7]}, "input-shape"),
    ({"x": rows(5)}, "input-profile"),
]


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("fed_before", [False, True])
@pytest.mark.parametrize(("inputs", "code"), MISUSES)
def test_misuse(inputs: dict[str, Any], code: str, fed_before: bool) -> None:
    """TensorRT checks no element type and no name: the session does."""
    session = linear()
    if fed_before:
        session.run({"x": rows(1)})
    with pytest.raises(InputError) as caught:
        session.run(inputs)
    assert caught.value.code == code
    np.testing.assert_array_equal(session.run({"x": rows(2)})["y"], expected(rows(2)))


@pytest.mark.usefixtures("log")
def test_shapes_beyond_the_profile_are_told() -> None:
    with pytest.raises(InputError) as caught:
        linear().run({"x": rows(5)})
    assert caught.value.why == "x is (5, 8); the engine takes (1, 8) to (4, 8)"


@pytest.mark.usefixtures("log")
def test_a_call_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    session = linear()
    monkeypatch.setenv("STANDIN_FAIL", "execute")
    with pytest.raises(DeviceError) as caught:
        session.run({"x": rows(1)})
    assert caught.value.code == "engine-failed"
    assert caught.value.why == "a kernel could not be launched"
    monkeypatch.setenv("STANDIN_FAIL", "cudaMalloc")
    with pytest.raises(DeviceError) as caught:
        session.run({"x": rows(4)})
    assert caught.value.code == "cuda-failed"
    monkeypatch.delenv("STANDIN_FAIL")
    np.testing.assert_array_equal(session.run({"x": rows(4)})["y"], expected(rows(4)))


@pytest.mark.usefixtures("log")
def test_bytes_that_are_no_engine() -> None:
    with pytest.raises(DeviceError) as caught:
        TensorrtSession(b"not an engine", [X], [Y])
    # Errors alone, of all that TensorRT told.
    assert (caught.value.code, caught.value.why) == ("engine-refused", "the magic number is wrong")


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [
        ([X, Tensor("z", "float32", (1,))], [Y], "it has x; the model has x:float32:batch,8; z:"),
        ([X], [Tensor("scores", "float32", ("batch", 3))], "it has y; the model has scores"),
    ],
)
def test_the_engine_of_another_model(inputs: list, outputs: list, why: str) -> None:
    engine = engine_of(LINEAR, x=((1, 8), (1, 8), (4, 8)))
    with pytest.raises(DeviceError) as caught:
        TensorrtSession(engine, inputs, outputs)
    assert caught.value.code == "engine-signature"
    assert why in caught.value.why


@pytest.mark.usefixtures("log")
def test_threads_take_turns() -> None:
    session = linear()

    def ask(seed: int) -> bool:
        array = rows(1 + seed % 4, seed)
        return bool((session.run({"x": array})["y"] == expected(array)).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(40)))


REAL = """
import json, sys, tensorrt_rtx
sys.modules["tensorrt"] = tensorrt_rtx
from edgepack.runtime.session import tensorrt_build
from edgepack.runtime.session import tensorrt_session
from edgepack.runtime.errors import DeviceError
from edgepack.runtime.tensor import Tensor

model = open(sys.argv[1], "rb").read()
options = tensorrt_build.Options(
    profiles={"x": ((1, 8), (1, 8), (4, 8))}, compute_capability="8.9"
)
engine, _ = tensorrt_build.build(tensorrt_rtx, model, options, b"", lambda seconds: None)
x, y = Tensor("x", "float32", ("batch", 8)), Tensor("y", "float32", ("batch", 3))
for data in (b"no engine" * 99, engine[: len(engine) // 2], engine):
    try:
        tensorrt_session.TensorrtSession(data, [x], [y])
    except DeviceError as error:
        print(json.dumps(error.to_json()), flush=True)
"""


def test_real_tensorrt_refuses_in_its_own_words(gpu_standin: StandIn, tmp_path: Path) -> None:
    """TensorRT-RTX is real, and there is no GPU: nothing it deserialises may end as a session.

    In a process of its own, since native code is let loose on broken bytes.
    """
    pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX: pip install tensorrt-rtx-cu13")
    model = tmp_path / "linear.onnx"
    model.write_bytes(LINEAR)
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(model)],
        # Without the stand-in for CUDA the session would not get as far as TensorRT.
        env={**os.environ, "LD_LIBRARY_PATH": str(gpu_standin.folder), "STANDIN_GPU": GPU},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    errors = [json.loads(line) for line in done.stdout.splitlines()]
    assert [error["code"] for error in errors] == ["engine-refused"] * 3
    assert "magicTag" in errors[0]["why"]
    assert all("Error Code" in error["why"] for error in errors)
