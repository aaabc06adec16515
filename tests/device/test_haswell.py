"""int8 on x86 without VNNI, emulated: what one file answers there and here.

Without VNNI two neighbouring u8 x s8 products are added in 16 bits and saturate. Pair-safe weights
cannot reach that; full-range weights do, and the fidelity gate must say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import run_bundle
from int8_nets import build, mixed_onnx, saturating_onnx
from interpreters import equipped

from edgepack.device.local import PACKAGES, _top_level
from edgepack.runtime import device
from edgepack.spec import target

QEMU = shutil.which("qemu-x86_64")
NETWORKS = {"mixed": mixed_onnx, "saturating": saturating_onnx}
FULL = "quantize:range=full"

VNNI = {"avx512_vnni", "avx_vnni"} & set(device.describe()["isa"] or ())

pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here: apt-get install qemu-user"),
    pytest.mark.skipif(device.describe()["arch"] != "x86_64", reason="this host is not x86-64"),
]


Build = Callable[..., Path]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with numpy and onnxruntime and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for path in {path for package in PACKAGES for path in _top_level(package)}:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A bundle of one of the NETWORKS, built on this host."""

    def make(network: Callable[[], onnx.ModelProto], chain: str = "quantize") -> Path:
        return build(tmp_path_factory.getbasetemp(), network, chain)

    return make


def verify_on(
    cpu: str, path: Path, packages: Path | None, python: str = sys.executable
) -> tuple[dict[str, Any], int]:
    """`verify --json` on an emulated CPU; the verdict and the exit status.

    Args:
        cpu: as qemu names it.
        path: the bundle.
        packages: what the interpreter may import; None for what it has of its own.
        python: the interpreter.
    """
    isolated = ("-S", "-s") if packages else ()
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8"}
    if packages:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(
        [str(QEMU), "-cpu", cpu, python, *isolated, "-B", str(path), "verify", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    verdict: dict[str, Any] = json.loads(done.stdout)
    assert "error" not in verdict, verdict
    return verdict, done.returncode


@pytest.mark.parametrize("cpu", target.load("cpu-fbgemm").emulate)
@pytest.mark.parametrize("network", NETWORKS)
def test_pair_safe_weights_give_the_same_bits(
    network: str, cpu: str, built: Build, packages: Path
) -> None:
    verdict, status = verify_on(cpu, built(NETWORKS[network]), packages)
    assert verdict["fidelity"]["outputs"]["scores"]["bit_exact"]
    assert verdict["fidelity"]["passed"]
    assert status == 0
    assert verdict["hidden"] == ["torch", "edgepack"]


@pytest.mark.skipif(not VNNI, reason="this host has no VNNI: it saturates as Haswell does")
@pytest.mark.parametrize("network", NETWORKS)
def test_full_range_weights_saturate_and_are_caught(
    network: str, built: Build, packages: Path
) -> None:
    """What passed on a build host with VNNI is stopped on the device that has none."""
    verdict, status = verify_on("Haswell", built(NETWORKS[network], FULL), packages)
    assert status == 1
    assert not verdict["passed"]
    fidelity = verdict["fidelity"]
    assert not fidelity["passed"]
    assert [gate["name"] for gate in fidelity["gates"]] == ["bit_exact"]
    assert fidelity["outputs"]["scores"]["snr_db"] < 30


@pytest.mark.parametrize("version", ["3.8", "3.10"])
def test_pair_safe_weights_on_the_older_engines(version: str, built: Build) -> None:
    """The order in which MLAS pairs weights is that of every onnxruntime that is supported."""
    path = built(saturating_onnx)
    requirements = run_bundle(path, "info", "--requirements").stdout
    verdict, status = verify_on("Haswell", path, None, str(equipped(version, requirements)))
    assert verdict["fidelity"]["outputs"]["scores"]["bit_exact"]
    assert status == 0
