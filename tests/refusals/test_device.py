"""Devices that cannot be had: each is refused in one error, before anything is run there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgepack.device import Emulated
from edgepack.errors import DeviceError, HostError
from edgepack.host import check_host
from edgepack.passes import parse_chain
from edgepack.request import Request
from edgepack.runtime import temporary
from edgepack.runtime.device.machine import describe, require
from edgepack.spec import target

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="no qemu-aarch64: apt-get install qemu-user")


def refuse(*arguments: str, cache: Path, path: Path | None = None) -> tuple[str, dict[str, str]]:
    """What the command line refuses with: stderr, and the error as JSON."""
    environment = {**os.environ, "EDGEPACK_CACHE": str(cache)}
    if path:
        environment["PATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-m", "edgepack", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error: dict[str, str] = json.loads(done.stdout)["error"]
    assert error["why"]
    assert error["hint"]
    return done.stderr, error


def programs(folder: Path, **found: str | None) -> Path:
    """A folder with those programs and no others, as PATH."""
    folder.mkdir()
    for name, program in found.items():
        assert program
        (folder / name.replace("_", "-")).symlink_to(program)
    return folder


def test_an_unknown_cpu(linear_bundle: Path, tmp_path: Path) -> None:
    _, error = refuse("verify", str(linear_bundle), "--emulate", "cortex_a53", cache=tmp_path)
    assert error["code"] == "cpu-unknown"
    assert "did you mean 'cortex-a53'?" in error["why"]
    _, error = refuse("emulator", "prepare", "haswell", cache=tmp_path)
    assert error["code"] == "cpu-unknown"
    assert "did you mean 'Haswell'?" in error["why"]


def test_a_profile_with_an_unknown_cpu(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('schema = 1\nextends = "arm-qnnpack"\n[emulate]\ncpus = ["neoverse-n7"]\n')
    _, error = refuse("targets", "check", str(profile), cache=tmp_path)
    assert error["code"] == "target-invalid"
    assert (
        "emulate.cpus[0]: 'neoverse-n7' is not known; did you mean 'neoverse-n1'?" in (error["why"])
    )


@pytest.mark.parametrize("cpu", ["Haswell", "cortex-a53"])
def test_without_qemu(linear_bundle: Path, tmp_path: Path, cpu: str) -> None:
    empty = programs(tmp_path / "bin")
    for command in (("verify", str(linear_bundle), "--emulate", cpu), ("emulator", "prepare", cpu)):
        _, error = refuse(*command, cache=tmp_path, path=empty)
        assert error["code"] == "qemu-missing"
        assert error["hint"] == "apt-get install qemu-user"


@needs_qemu
def test_without_a_prepared_emulator(linear_bundle: Path, tmp_path: Path) -> None:
    flags = ("--emulate", "Haswell", "--emulate", "cortex-a72")
    _, error = refuse("verify", str(linear_bundle), *flags, cache=tmp_path)
    assert error["code"] == "emulator-missing"
    assert error["hint"] == "edgepack emulator prepare cortex-a72"
    assert list(tmp_path.iterdir()) == []


@needs_qemu
def test_on_a_system_that_is_not_debian(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", **{"qemu-aarch64": QEMU})
    _, error = refuse("emulator", "prepare", "cortex-a53", cache=tmp_path / "cache", path=path)
    assert error["code"] == "apt-missing"
    assert "apt-get" in error["why"]
    assert not (tmp_path / "cache").exists()


@needs_qemu
def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    failing = shutil.which("false")
    found = {"qemu-aarch64": QEMU, "apt-get": failing, "dpkg-deb": failing}
    path = programs(tmp_path / "bin", **found)
    _, error = refuse("emulator", "prepare", "cortex-a53", cache=tmp_path / "cache", path=path)
    assert error["code"] == "emulator-failed"
    assert "apt-get update failed: 1" in error["why"]
    assert list((tmp_path / "cache" / "emulator").iterdir()) == []


@needs_qemu
def test_what_a_killed_preparation_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "emulator"
    folder.mkdir(parents=True)
    running, descriptor = temporary.create_folder(str(folder))
    killed, unlocked = temporary.create_folder(str(folder))
    (Path(killed) / "root").mkdir()
    os.close(unlocked)
    failing = shutil.which("false")
    found = {"qemu-aarch64": QEMU, "apt-get": failing, "dpkg-deb": failing}
    path = programs(tmp_path / "bin", **found)
    refuse("emulator", "prepare", "cortex-a53", cache=tmp_path / "cache", path=path)
    os.close(descriptor)
    assert list(folder.iterdir()) == [Path(running)]


@needs_qemu
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    _, error = refuse("emulator", "prepare", "cortex-a53", cache=tmp_path / "cache")
    assert error["code"] == "output-unwritable"


def test_an_x86_cpu_on_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")):
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(HostError) as caught:
        Emulated("Haswell")
    assert caught.value.code == "emulator-host"


def test_a_host_that_stands_in_keeps_the_other_floors() -> None:
    here = describe()
    other = {**here, "arch": "riscv64"}
    require({"arch": "aarch64", "isa": ["asimd"]}, other, any_arch=True)
    for needs, code in (
        ({"arch": here["arch"], "isa": ["quantum"]}, "device-isa"),
        ({"arch": "aarch64", "python": "99.0"}, "device-python"),
    ):
        with pytest.raises(DeviceError) as caught:
            require(needs, {**here, "isa": ["avx2"]}, any_arch=True)
        assert caught.value.code == code


def test_a_damaged_bundle_is_not_emulated(linear_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.edgepack"
    damaged.write_bytes(linear_bundle.read_bytes()[:-1])
    _, error = refuse("verify", str(damaged), "--emulate", "Haswell", cache=tmp_path)
    assert error["code"] == "bundle-malformed"


def request_for(name: str, chain: str) -> Request:
    profile = target.load(name)
    return Request(Path("m.onnx"), profile, Path("m.edgepack"), "m", chain=parse_chain(chain))


HOSTS: dict[str, dict[str, Any]] = {
    "plain": {"arch": "x86_64", "cpu": "Broadwell", "isa": ["avx2", "avx512bw"]},
    "unknown": {"arch": "x86_64", "cpu": "", "isa": None},
}


@pytest.mark.parametrize("name", ["arm-qnnpack", "cpu-fbgemm"])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_host_that_saturates_where_a_cpu_of_the_target_does_not(
    mode: str, host: str, name: str
) -> None:
    with pytest.raises(HostError) as caught:
        check_host(request_for(name, f"quantize:mode={mode}:range=full"), HOSTS[host])
    assert caught.value.code == "host-saturates"
    assert "range=pair-safe" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "chain", "host"),
    [
        ("arm-qnnpack", "quantize:range=full", {**HOSTS["plain"], "isa": ["avx512_vnni"]}),
        ("arm-qnnpack", "quantize:range=full", {**HOSTS["plain"], "arch": "aarch64"}),
        ("arm-qnnpack", "quantize:range=pair-safe", HOSTS["plain"]),
        ("cpu-fbgemm", "quantize:range=full", {**HOSTS["plain"], "isa": ["avx_vnni"]}),
        ("cpu-fbgemm", "quantize:range=reduced", HOSTS["plain"]),
        ("arm-qnnpack", "quantize:mode=weights:range=full", HOSTS["plain"]),
        ("cpu-fbgemm", "quantize", describe()),
    ],
)
def test_hosts_that_do_not(name: str, chain: str, host: dict[str, Any]) -> None:
    check_host(request_for(name, chain), host)
