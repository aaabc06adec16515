"""A device without network, numpy, engine or pip: `setup` from the bundle's wheels, then `verify`.

The wheels are those that `--wheels` fetches, for the Python that each device has.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import bundle, device, engine
from edgepack.bundle import wheels
from edgepack.cache import Cache
from edgepack.device import Emulated, Local
from edgepack.errors import HostError
from edgepack.runtime.commands.run import read_npz
from edgepack.runtime.device.machine import describe
from edgepack.spec import target
from support import interpreters
from support.emulation import KEPT
from support.linear import linear_contents, measured

NO_NETWORK = ("unshare", "--map-root-user", "--net", "--")
HOST = {"x86_64": "cpu-fbgemm", "aarch64": "arm-qnnpack"}
REACH = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"


@pytest.fixture(scope="module")
def unreachable() -> None:
    """Skips where the kernel gives no network namespace."""
    try:
        done = subprocess.run([*NO_NETWORK, "true"], capture_output=True)
    except OSError:
        pytest.skip("no unshare: apt-get install util-linux")
    if done.returncode != 0:
        pytest.skip("the kernel gives no network namespace here")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pip keeps what it downloaded; this goes."""
    return tmp_path_factory.mktemp("wheels")


def bundle_for(profile: str, python: str, cache: Path, folder: Path) -> Path:
    """A bundle of a small network for a device, with answers, and wheels for its Python."""
    device_of = replace(target.load(profile), wheel_python=python)
    try:
        found = wheels.fetch(device_of, engine.requirements(device_of), Cache(cache))
    except HostError as error:
        if error.code != "wheels-offline":
            raise
        pytest.skip(f"nothing can be downloaded for Python {python}")
    path = folder / f"{profile}-{python}.edgepack"
    contents = linear_contents()
    contents = replace(contents, device={**contents.device, "arch": device_of.arch, "isa": []})
    bundle.write(path, contents)
    with Local() as host:
        answers = str(folder / "answers.npz")
        device.ask(host, str(path), "run", "--stand-in", "--output", answers)
    built = [read_npz(answers)["y"]]
    bundle.write(path, measured(replace(contents, built=built, wheels=found.files)))
    return path


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command without network, and with nothing of this machine's environment."""
    return subprocess.run(
        [*NO_NETWORK, *map(str, command)],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def prove(python: Sequence[str | Path], path: Path, folder: Path, *prefix: str) -> None:
    """Set up an environment, verify in it, and set it up again, from nothing.

    Args:
        python: the command that is the device's Python.
        path: the bundle.
        folder: an empty one.
        prefix: what comes before the environment's Python.
    """
    bare = (*python, "-s", "-B")
    assert "ModuleNotFoundError" in run(*bare, "-c", "import numpy", cwd=folder).stderr
    assert "Network is unreachable" in run(*bare, "-c", REACH, cwd=folder).stderr
    done = run(*bare, path, "verify", "--json", cwd=folder)
    assert json.loads(done.stdout)["error"]["code"] == "numpy-missing"
    done = run(*bare, path, "info", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "python3 BUNDLE setup DIR" in done.stdout

    done = run(*bare, path, "setup", "env", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["made"]
    assert {"numpy", "onnxruntime"} <= set(found["packages"])
    done = run(*prefix, found["python"], path, "verify", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["passed"]
    assert verdict["device"]["onnxruntime"] == found["packages"]["onnxruntime"]
    # Whole, with what the run compiled beside it.
    done = run(*bare, path, "setup", "env", "--json", cwd=folder)
    assert json.loads(done.stdout)["made"] is False
    assert sorted(p.name for p in folder.iterdir()) == ["env"]


@pytest.mark.usefixtures("unreachable", "arm")
def test_an_emulated_cortex_a53(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Debian's minimal Python, which has neither pip nor ensurepip."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(KEPT))
    (tmp_path / "device").mkdir()
    with Emulated("cortex-a53") as cpu:
        *qemu, python = cpu.interpreter
        version = run(*qemu, python, "-c", "import platform as p; print(p.python_version(), "
                      "p.machine())", cwd=tmp_path).stdout  # fmt: skip
        assert version.endswith("aarch64\n")
        without = run(*qemu, python, "-c", "import ensurepip", cwd=tmp_path)
        assert "ModuleNotFoundError" in without.stderr
        path = bundle_for("arm-qnnpack", version.rpartition(".")[0], cache, tmp_path)
        prove([*qemu, python], path, tmp_path / "device", *qemu)


@pytest.mark.usefixtures("unreachable", "arm")
def test_wheels_of_another_processor(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(KEPT))
    (tmp_path / "device").mkdir()
    with Emulated("cortex-a53") as cpu:
        version = run(*cpu.interpreter, "-c", "import platform as p; print(p.python_version())",
                      cwd=tmp_path).stdout  # fmt: skip
        path = bundle_for("cpu-fbgemm", version.rpartition(".")[0], cache, tmp_path)
        done = run(*cpu.interpreter, path, "setup", "env", cwd=tmp_path / "device")
    assert done.returncode == 2
    assert "error[wheels-platform]" in done.stderr
    assert "on x86_64, glibc 2.28 or newer; this is CPython" in done.stderr
    assert not list((tmp_path / "device").iterdir())


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("version", ["3.8", "3.10", "3.13"])
def test_every_python(version: str, cache: Path, tmp_path: Path) -> None:
    python = interpreters.find(version)
    if python is None:
        pytest.skip(f"no Python {version} here: pyenv install {version}")
    path = bundle_for(HOST[describe()["arch"]], version, cache, tmp_path)
    (tmp_path / "device").mkdir()
    # -I and -S hide what that Python has installed; the environment hides it by itself.
    prove([python, "-I", "-S"], path, tmp_path / "device")


@pytest.mark.usefixtures("unreachable")
def test_another_python_is_refused(cache: Path, tmp_path: Path) -> None:
    here = ".".join(platform.python_version_tuple()[:2])
    other = next((v for v in ("3.8", "3.12", "3.13") if v != here and interpreters.find(v)), None)
    if other is None:
        pytest.skip("there is one Python alone here")
    path = bundle_for(HOST[describe()["arch"]], here, cache, tmp_path)
    done = run(interpreters.find(other), path, "setup", "env", cwd=tmp_path)
    assert done.returncode == 2
    assert "error[wheels-python]" in done.stderr
    assert f"they are for CPython {here} on " in done.stderr
    assert f"this is CPython {other} on " in done.stderr
    assert not (tmp_path / "env").exists()


@pytest.mark.usefixtures("unreachable")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_too_small(cache: Path, tmp_path: Path) -> None:
    here = ".".join(platform.python_version_tuple()[:2])
    path = bundle_for(HOST[describe()["arch"]], here, cache, tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        done = run(shutil.which("python3") or "python3", path, "setup", disk / "env", cwd=tmp_path)
        assert done.returncode == 2
        assert "error[setup-full]" in done.stderr
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
