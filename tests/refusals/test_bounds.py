"""Small files that would stall or fill a build: each is refused in bounded time and memory."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edgepack import trial
from edgepack.cli import cli
from edgepack.errors import SourceError
from edgepack.source import load
from edgepack.source.state import MANY
from support.build_cases import Home

FED = {"x": np.ones((16, 4), np.float32)}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Whatever waits for a writer, or for an end, is interrupted."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError("it was still waiting")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "device"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A named pipe that nobody writes into, or a link to a device without an end."""
    path = tmp_path / "endless.toml"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


COMMANDS = [
    "verify {}", "verify {} --on ssh://nowhere.invalid", "run {} --output {out}", "inspect {}",
    "bench {}", "ship {} ssh://nowhere.invalid/x", "run {built} --input {} --output {out}",
    "bench {built} --against {} --length smoke", "build {} --target cpu-fbgemm",
    "build {model} --target {} --calibration {samples}",
    "build {model} --target cpu-fbgemm --manifest {} --calibration {samples}",
    "build {model} --target cpu-fbgemm --calibration {}",
    "build {model} --target cpu-fbgemm --calibration {samples} --evaluation {}",
    "build {model} --target cpu-fbgemm --calibration {samples} --output {}",
    "verify {built} --on ssh://nowhere.invalid --ssh-config {}",
    "targets show {}",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_waits_for_what_is_no_plain_file(
    command: str, endless: Path, home: Home, built: Path, tmp_path: Path
) -> None:
    words = command.format(
        endless, built=built, out=tmp_path / "out.npz", model=home / "tiny.onnx",
        samples=home / "calibration.npz",
    )  # fmt: skip
    started = time.monotonic()
    done = CliRunner().invoke(cli, [*words.split(), *([] if "show" in words else ["--json"])])
    assert done.exit_code == 2, done.output
    assert "internal-error" not in done.output
    assert "still waiting" not in done.output
    assert time.monotonic() - started < 45


def graph(path: Path, nodes: list[Any], **weights: np.ndarray) -> Path:
    """A graph from `x`, (batch, 4), to `y`."""
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path / "m.onnx")
    return path / "m.onnx"


def loop(path: Path, turns: int) -> Path:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["again"]),
         helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, ["batch", 4])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body)
    return graph(path, [node], n=np.int64(turns), t=np.bool_(True))


def refusal(path: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        load(path).run(FED)
    return caught.value


def test_a_loop_with_an_end_is_run(tmp_path: Path) -> None:
    (answer,) = load(loop(tmp_path, 3)).run(FED)
    assert (answer == 8).all()


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand"])
def test_a_tensor_that_fills_the_memory(tmp_path: Path, operator: str) -> None:
    """Some 200 bytes that become 64 GiB."""
    if operator == "Expand":
        shape = {"s": np.array([1 << 28, 1, 4], np.int64)}
        node = helper.make_node("Expand", ["x", "s"], ["e"])
    else:
        shape = {"s": np.array([1 << 32, 1, 4], np.int64)}
        node = helper.make_node("ConstantOfShape", ["s"], ["e"])
    reduced = helper.make_node("ReduceSum", ["e", "a"], ["r"], keepdims=0)
    nodes = [node, reduced, helper.make_node("Add", ["x", "r"], ["y"])]
    error = refusal(graph(tmp_path, nodes, a=np.array([0], np.int64), **shape))
    assert error.code == "source-onnx-memory"
    assert "MiB" in error.why


def test_a_child_that_dies_is_no_crash_of_ours(tmp_path: Path) -> None:
    """What kills the process that tries a model leaves this one alive."""
    path = graph(tmp_path, [helper.make_node("Identity", ["x"], ["y"])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONMALLOC", "no-such-allocator")  # Python ends before it begins
        patch.setattr(trial, "_SIGNALS_OF_NO_MEMORY", ())
        assert refusal(path).code == "source-onnx-crash"


def test_a_large_honest_model_passes_with_a_quarter_of_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 MiB of weights; activations of 256 MiB from inputs of 256 bytes."""
    weights = {"w": np.ones((4, 1 << 22), np.float32), "v": np.ones((1 << 22, 4), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]  # fmt: skip
    monkeypatch.setenv(trial.FACTOR, "0.25")
    (answer,) = load(graph(tmp_path, nodes, **weights)).run(FED)
    assert answer.shape == (16, 4)


def test_a_state_dict_of_many_tensors_loads_in_seconds(tmp_path: Path) -> None:
    """torch's own way takes time with the square of their number."""
    (tmp_path / "nets.py").write_text(
        "import torch\n\n\ndef net():\n    return torch.nn.Sequential(*("
        "torch.nn.Linear(2, 2, bias=i % 2 > 0) for i in range(6000)))\n"
    )
    layers = [torch.nn.Linear(2, 2, bias=i % 2 > 0) for i in range(6000)]
    state = torch.nn.Sequential(*layers).state_dict()
    assert len(state) > MANY
    torch.save(state, tmp_path / "m.pt")
    started = time.process_time()
    source = load(tmp_path / "m.pt", arch=f"{tmp_path / 'nets.py'}:net")
    assert time.process_time() - started < 15
    loaded = source.module.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_loop_without_an_end_is_refused_in_one_document(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **FED)
    words = ["build", loop(tmp_path, 2**62), "--calibration", tmp_path / "x.npz", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "SECONDS", 3.0)
        done = CliRunner().invoke(cli, [*map(str, words), "--target", "cpu-fbgemm"])
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "source-onnx-time"
    assert "EDGEPACK_LIMITS" in error["hint"]
