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
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgepack.device.packages import PACKAGES, _top_level
from edgepack.runtime.device import machine
from edgepack.spec import target
from support.bundle_cases import run_bundle
from support.int8_nets import EVALUATION, build, mixed_onnx, run_build, saturating_onnx
from support.interpreters import equipped

QEMU = shutil.which("qemu-x86_64")
NETWORKS = {"mixed": mixed_onnx, "saturating": saturating_onnx}
FULL = "quantize:range=full"

VNNI = {"avx512_vnni", "avx_vnni"} & set(machine.describe()["isa"] or ())

pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here: apt-get install qemu-user"),
    pytest.mark.skipif(machine.describe()["arch"] != "x86_64", reason="this host is not x86-64"),
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

    def make(
        network: Callable[[], onnx.ModelProto], chain: str = "quantize", *options: str
    ) -> Path:
        return build(tmp_path_factory.getbasetemp(), network, chain, options=options)

    return make


def report_of(path: Path) -> dict[str, Any]:
    """The report that a bundle carries."""
    with zipfile.ZipFile(path) as archive:
        report: dict[str, Any] = json.loads(archive.read("report/report.json"))
        return report


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
    """What was built without that proof is stopped on the device that has no VNNI."""
    path = built(NETWORKS[network], FULL, "--no-emulate")
    (warning,) = [w for w in report_of(path)["warnings"] if "VNNI" in w]
    assert warning == (
        "not verified on CPUs without VNNI, where full-range weights saturate (--no-emulate)"
    )
    verdict, status = verify_on("Haswell", path, packages)
    assert status == 1
    assert not verdict["passed"]
    fidelity = verdict["fidelity"]
    assert not fidelity["passed"]
    assert {gate["name"] for gate in fidelity["gates"]} == {"bit_exact"}
    assert fidelity["outputs"]["scores"]["snr_db"] < 30


@pytest.mark.skipif(not VNNI, reason="this host has no VNNI: it refuses the build at once")
@pytest.mark.parametrize("network", NETWORKS)
def test_full_range_weights_are_refused_by_the_build(network: str, tmp_path: Path) -> None:
    arguments = (NETWORKS[network], FULL, "cpu-fbgemm", tmp_path / "cache")
    done = run_build(tmp_path, *arguments)
    assert done.returncode == 1
    assert "error[gate-missed]" in done.stderr
    assert "fidelity on Haswell, emulated:" in done.stderr
    assert "--chain quantize:range=pair-safe" in done.stderr
    # What quality has to do with it: nothing.
    assert "first dropped" not in done.stderr
    assert "calibration" not in done.stderr
    assert not (tmp_path / "net.edgepack").exists()
    report = report_of(tmp_path / "net.rejected.edgepack")
    assert report["verdict"] == "FAIL"
    assert report["quality"]["passed"]
    assert report["fidelity"]["device"] == "Haswell, emulated"
    assert [found["passed"] for found in report["emulated"].values()] == [False, False]
    # As before, the bundle is at hand for another look.
    verdict = json.loads(run_bundle(tmp_path / "net.rejected.edgepack", "verify", "--json").stdout)
    assert verdict["fidelity"]["passed"]
    assert not verdict["passed"]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_build_is_proved_on_the_cpus_of_its_profile(network: str, built: Build) -> None:
    report = report_of(built(NETWORKS[network]))
    cpus = target.load("cpu-fbgemm").emulate
    (stage,) = [record for record in report["ledger"] if record["stage"] == "emulate"]
    assert stage["notes"] == [f"{cpu}, emulated: the same bits" for cpu in cpus]
    assert list(report["emulated"]) == list(cpus)
    for found in report["emulated"].values():
        assert found["passed"]
        assert found["outputs"]["scores"]["bit_exact"]
        assert 1 <= found["samples"] <= 8
    assert "device" not in report["fidelity"]
    assert report["fidelity"]["samples"] == EVALUATION
    assert not [w for w in report["warnings"] if "VNNI" in w]


def test_without_an_emulator_the_report_says_what_is_not_proved(tmp_path: Path) -> None:
    """A PATH with all but qemu."""
    (tmp_path / "bin").mkdir()
    arguments = (mixed_onnx, "quantize", "cpu-fbgemm", tmp_path / "cache")
    done = run_build(tmp_path, *arguments, path=str(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path / "net.edgepack")
    (stage,) = [record for record in report["ledger"] if record["stage"] == "emulate"]
    assert stage["status"] == "skipped"
    assert report["emulated"] == {}
    reason = "Haswell cannot be emulated on this machine: apt-get install qemu-user"
    assert stage["notes"] == [reason]
    assert f"not verified on CPUs without VNNI ({reason})" in report["warnings"]
    assert f"warning: not verified on CPUs without VNNI ({reason})" in done.stderr


def test_a_float_model_is_not_emulated_and_nothing_is_in_doubt(tmp_path: Path) -> None:
    done = run_build(tmp_path, mixed_onnx, "none", "cpu-fbgemm", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path / "net.edgepack")
    (stage,) = [record for record in report["ledger"] if record["stage"] == "emulate"]
    assert stage["status"] == "skipped"
    assert "takes minutes" in stage["notes"][0]
    assert "VNNI" not in done.stderr


def test_a_manifest_can_do_without(tmp_path: Path) -> None:
    (tmp_path / "hurry.toml").write_text("schema = 1\nemulate = false\n")
    arguments = (mixed_onnx, "quantize", "cpu-fbgemm", tmp_path / "cache")
    done = run_build(tmp_path, *arguments, ("--manifest", "hurry.toml"))
    assert done.returncode == 0, done.stderr
    assert "not verified on CPUs without VNNI (--no-emulate)" in done.stderr


def test_the_loader_answers_some_of_its_samples(built: Build) -> None:
    path = built(mixed_onnx)
    verdict = json.loads(run_bundle(path, "verify", "--samples", "3", "--json").stdout)
    assert verdict["passed"]
    assert verdict["fidelity"]["samples"] == verdict["quality"]["samples"] == 3
    for count in ("0", "-2", "some"):
        refused = run_bundle(path, "verify", "--samples", count)
        assert refused.returncode == 2
        assert "--samples" in refused.stderr


@pytest.mark.parametrize("version", ["3.8", "3.10"])
def test_pair_safe_weights_on_the_older_engines(version: str, built: Build) -> None:
    """The order in which MLAS pairs weights is that of every onnxruntime that is supported."""
    path = built(saturating_onnx)
    requirements = run_bundle(path, "info", "--requirements").stdout
    verdict, status = verify_on("Haswell", path, None, str(equipped(version, requirements)))
    assert verdict["fidelity"]["outputs"]["scores"]["bit_exact"]
    assert status == 0
