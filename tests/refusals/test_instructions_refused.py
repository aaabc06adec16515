"""Instructions that cannot be counted: each way ends in one error that tells what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.device import countable
from edgepack.device.instructions.plugin import plugin
from edgepack.runtime.device.machine import describe
from support.build_cases import ask

COUNT = ("--instructions", "--emulate", "Haswell")


def lacks() -> str:
    """Why nothing can be counted here; "" where it can."""
    if describe()["arch"] != "x86_64":
        return "this host is not x86-64"
    fault = countable("Haswell")
    return f"{fault.what}: {fault.hint}" if fault else ""


needs_counting = pytest.mark.skipif(bool(lacks()), reason=lacks() or "it can count")


def refused(bundle: Path, *options: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """The error that `bench` ends with."""
    answer = ask("bench", str(bundle), *options, env=env)
    assert answer.status == 2
    error: dict[str, str] = answer.document["error"]
    assert error["hint"]
    return error


def path_of(folder: Path, **programs: str | Path | None) -> dict[str, str]:
    """An environment in which those programs are found and no others."""
    folder.mkdir()
    for name, program in programs.items():
        assert program
        (folder / name).symlink_to(program)
    return {"PATH": str(folder), "EDGEPACK_CACHE": str(folder / "cache")}


def qemu() -> dict[str, str | None]:
    return {"qemu-x86_64": shutil.which("qemu-x86_64")}


def test_emulated_time(linear_bundle: Path) -> None:
    error = refused(linear_bundle, "--emulate", "Haswell", "--latency", "smoke")
    assert error["code"] == "emulated-speed"
    assert "--emulate Haswell --instructions" in error["hint"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--instructions",), "--emulate CPU"),
        ((*COUNT, "--threads", "2"), "--threads"),
        ((*COUNT, "--latency", "quick"), "--latency"),
        ((*COUNT, "--on", "ssh://device"), "--on"),
    ],
)
def test_options_that_do_not_go_together(
    linear_bundle: Path, options: tuple[str, ...], told: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgepack", "bench", str(linear_bundle), *options, "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage"
    assert told in error["what"]


def test_an_unknown_cpu(linear_bundle: Path) -> None:
    error = refused(linear_bundle, "--instructions", "--emulate", "haswell")
    assert error["code"] == "cpu-unknown"
    assert "did you mean 'Haswell'?" in error["why"]


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.edgepack").write_text("print('run')")
    assert refused(tmp_path / "x.edgepack", *COUNT)["code"] == "bundle-malformed"


@needs_counting
def test_without_a_compiler(linear_bundle: Path, tmp_path: Path) -> None:
    """$CC is none: where devices are built for it is the device's."""
    env = path_of(tmp_path / "bin", **qemu())
    error = refused(linear_bundle, *COUNT, env={**env, "CC": str(shutil.which("cc"))})
    assert error["code"] == "compiler-missing"
    assert error["hint"] == "apt-get install gcc libc6-dev"
    assert not (tmp_path / "bin" / "cache").exists()


@needs_counting
def test_a_compiler_that_fails(linear_bundle: Path, tmp_path: Path) -> None:
    """As one without the headers of C does."""
    env = path_of(tmp_path / "bin", **qemu(), cc=shutil.which("false"))
    error = refused(linear_bundle, *COUNT, env=env)
    assert error["code"] == "plugin-failed"
    assert error["why"].endswith("cc failed: 1")
    assert [p for p in (tmp_path / "bin" / "cache").rglob("*") if p.is_file()] == []


@needs_counting
def test_a_qemu_without_plugins(linear_bundle: Path, tmp_path: Path) -> None:
    """What stands in for it knows no option, `-plugin` among them."""
    env = path_of(tmp_path / "bin", **{"qemu-x86_64": shutil.which("true")})
    error = refused(linear_bundle, *COUNT, env=env)
    assert error["code"] == "qemu-without-plugins"
    assert "static" in error["why"]


@needs_counting
def test_a_qemu_that_does_not_run(linear_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    env = path_of(tmp_path / "bin", **{"qemu-x86_64": broken})
    assert refused(linear_bundle, *COUNT, env=env)["code"] == "qemu-missing"


@needs_counting
def test_a_damaged_plugin_in_the_cache(
    linear_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    counter = plugin("Haswell")
    counter.write_bytes(counter.read_bytes()[:1000])
    error = refused(linear_bundle, *COUNT)
    assert error["code"] == "plugin-refused"
    assert str(counter.parent) in error["hint"]
    shutil.rmtree(counter.parent)
    assert ask("bench", str(linear_bundle), *COUNT).status == 0


@needs_counting
def test_a_cache_that_cannot_be_written(linear_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    env = {"EDGEPACK_CACHE": str(tmp_path / "cache")}
    assert refused(linear_bundle, *COUNT, env=env)["code"] == "output-unwritable"


def product(path: Path, name: str) -> Path:
    """A network whose input is called so."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.ones((8, 2), np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@needs_counting
def test_other_models_that_cannot_be_counted(linear_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for other, code in (
        (tmp_path / "none.onnx", "against-unreadable"),
        (tmp_path, "against-unreadable"),
        (tmp_path / "text.onnx", "engine-refused"),
        (product(tmp_path / "other.onnx", "z"), "against-failed"),
    ):
        error = refused(linear_bundle, *COUNT, f"--against={other}")
        assert error["code"] == code, error
    assert "x" in error["why"]


@needs_counting
def test_a_bundle_for_another_processor(linear_bundle: Path, tmp_path: Path) -> None:
    """Where there is no Python for that processor, this is what is told first."""
    if not shutil.which("qemu-aarch64"):
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    kept = Path(__file__).resolve().parents[2] / ".cache"
    options = ("--instructions", "--emulate", "cortex-a53")
    error = refused(linear_bundle, *options, env={"EDGEPACK_CACHE": str(tmp_path)})
    assert error["code"] == "emulator-missing"
    if not (kept / "emulator").is_dir():
        pytest.skip("the emulated Python is not prepared: edgepack emulator prepare")
    error = refused(linear_bundle, *options, env={"EDGEPACK_CACHE": str(kept)})
    assert error["code"] == "device-arch"
