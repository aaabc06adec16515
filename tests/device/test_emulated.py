"""Emulated CPUs as devices: what the command line says of a bundle on each of them.

The aarch64 Python is prepared once, by the command that users have, and kept under `.cache/`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepack.device import CPUS
from edgepack.runtime.bundle.archive import Archive
from edgepack.spec import target
from support import ROOT
from support.bundle_cases import run_bundle
from support.emulation import HOST, KEPT, X86_64, edgepack, fresh, matrix
from support.int8_nets import build, mixed_onnx, run_build, saturating_onnx

FULL = "quantize:range=full"
VNNI = {"avx512_vnni", "avx_vnni"} & set(HOST["isa"] or ())


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def exact(column: dict[str, Any]) -> bool:
    return bool(column["verdict"]["fidelity"]["outputs"]["scores"]["bit_exact"])


@X86_64
@pytest.mark.usefixtures("x86")
def test_pair_safe_weights_on_x86_without_vnni(base: Path) -> None:
    bundle = build(base, mixed_onnx)
    columns, shown, status = matrix(bundle, "Haswell", "Skylake-Client")
    assert status == 0
    for name, column in columns.items():
        assert exact(column)
        assert column["verdict"]["hidden"] == ["torch", "edgepack"]
        assert re.search(rf"^{name} \(emulated\) +✓ \d+ files +✓ bit-exact +✓ .* dB", shown, re.M)
        here = column["verdict"]["device"]
        assert name.split("-")[0] in here["cpu"]
        assert "avx2" in here["isa"]
        # What the host has is not what the emulated CPU has.
        assert not [flag for flag in here["isa"] if flag.startswith("avx512")]
    assert "seconds" not in shown


@X86_64
@pytest.mark.skipif(not VNNI, reason="this host has no VNNI: it saturates as Haswell does")
@pytest.mark.usefixtures("x86")
def test_full_range_weights_are_caught(base: Path) -> None:
    bundle = build(base, saturating_onnx, FULL, options=("--no-emulate",))
    columns, shown, status = matrix(bundle, "Haswell")
    assert status == 1
    assert not columns["Haswell"]["verdict"]["fidelity"]["passed"]
    assert "✗ FAIL" in shown
    assert "Haswell, fidelity: Bit-exact of scores: no (required)" in shown


@X86_64
@pytest.mark.usefixtures("arm", "x86")
def test_a_wrong_architecture_is_refused_and_the_others_run(base: Path) -> None:
    columns, shown, status = matrix(build(base, mixed_onnx), "cortex-a53", "Haswell")
    assert status == 2
    assert columns["cortex-a53"]["error"]["code"] == "device-arch"
    assert columns["Haswell"]["verdict"]["passed"]
    assert "cortex-a53: error[device-arch]" in shown


NAMES = {
    "cortex-a53": "Cortex-A53",
    "cortex-a72": "Cortex-A72",
    "cortex-a76": "Cortex-A76",
    "neoverse-n1": "Neoverse-N1",
    "neoverse-i8mm": "Neoverse-V1",
}


@pytest.mark.usefixtures("arm")
def test_int8_is_bit_equal_on_every_arm(base: Path) -> None:
    """Built on a host of another architecture, and not run on the target's meanwhile."""
    bundle = build(base, mixed_onnx, target="arm-qnnpack")
    cpus = [*target.load("arm-qnnpack").emulate, "cortex-a76", "neoverse-i8mm"]
    columns, _, status = matrix(bundle, *cpus)
    assert status == 0
    for cpu, column in columns.items():
        assert exact(column)
        here = column["verdict"]["device"]
        assert here["arch"] == "aarch64"
        assert here["cpu"] == NAMES[cpu]
        assert ("asimddp" in here["isa"]) == (cpu not in ("cortex-a53", "cortex-a72"))


@X86_64
def test_a_build_says_that_the_target_was_not_run(base: Path) -> None:
    bundle = build(base, mixed_onnx, target="arm-qnnpack")
    report = json.loads(edgepack("inspect", str(bundle), "--json").stdout)["report"]
    stages = {record["stage"]: record for record in report["ledger"]}
    assert stages["emulate"]["status"] == "skipped"
    assert stages["emulate"]["notes"] == ["--no-emulate"]
    assert report["verdict"] == "UNVERIFIED"
    (reason,) = report["reasons"]
    assert reason["code"] == "not-on-target"
    assert [w for w in report["warnings"] if w.startswith("not run on any aarch64")]
    assert stages["latency"]["status"] == "skipped"
    assert report["latency"] is None
    refused = run_bundle(bundle, "verify")
    assert refused.returncode == 2
    assert "error[device-arch]" in refused.stderr
    # On the host the command that helps is named, with the bundle's own path.
    hint = edgepack("verify", str(bundle)).stderr
    assert f"edgepack verify {bundle} --emulate cortex-a53" in hint
    assert "--emulate" in reason["remedy"]
    assert f"edgepack verify {bundle} --on ssh://HOST" in hint
    # As the build ran it.
    stood_in = run_bundle(bundle, "verify", "--stand-in", "--json")
    assert stood_in.returncode == 1
    assert json.loads(stood_in.stdout)["verdict"] == "UNVERIFIED"
    assert json.loads(stood_in.stdout)["device"]["arch"] == "x86_64"
    assert "--stand-in" not in run_bundle(bundle, "verify", "--help").stdout


@X86_64
@pytest.mark.usefixtures("arm")
def test_a_build_is_proved_on_the_targets_cpus(tmp_path: Path) -> None:
    """With a network whose full-range weights saturate on x86 without VNNI."""
    done = run_build(tmp_path, saturating_onnx, "quantize", "arm-qnnpack", fresh(tmp_path))
    if not VNNI:
        assert "error[host-saturates]" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "net.edgepack"
    report = json.loads(edgepack("inspect", str(bundle), "--json").stdout)["report"]
    record = next(record for record in report["ledger"] if record["stage"] == "emulate")
    assert record["notes"] == [
        f"{cpu}, emulated: the same bits" for cpu in target.load("arm-qnnpack").emulate
    ]
    assert not report["warnings"]
    with Archive(str(bundle)) as archive:
        model = onnx.load_from_string(archive.read("model/model.onnx"))
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(weights) == 3
    assert min(array.min() for array in weights) >= -127
    assert np.abs(np.concatenate([array.ravel() for array in weights])).max() == 127


@X86_64
@pytest.mark.skipif(not VNNI, reason="this host has no VNNI: it builds no full-range bundle")
@pytest.mark.usefixtures("arm")
def test_a_build_that_the_target_answers_otherwise_is_rejected(tmp_path: Path) -> None:
    """A float Gemm sums in another order there, and no such error is allowed here."""
    profile = tmp_path / "strict.toml"
    profile.write_text(
        'schema = 1\nextends = "arm-qnnpack"\nname = "strict"\n'
        "[gates.fidelity]\nbit_exact = false\nsnr_db = 300\n"
        '[emulate]\ncpus = ["cortex-a53"]\n'
    )
    chain = "quantize:exclude=classify"
    done = run_build(tmp_path, saturating_onnx, chain, str(profile), fresh(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "error[gate-missed]" in done.stderr
    missed = r"fidelity on cortex-a53, emulated: SNR of scores: 1\d\d\.\d dB"
    assert re.search(missed, done.stderr)
    assert not (tmp_path / "net.edgepack").exists()
    assert (tmp_path / "net.rejected.edgepack").exists()


@pytest.mark.usefixtures("x86")
def test_an_emulated_cpu_makes_the_same_arrays_of_pictures(photo_bundle: Path) -> None:
    devices, text, status = matrix(photo_bundle, "Haswell")
    assert status == 0
    verdict = devices["Haswell"]["verdict"]
    (gate,) = verdict["preprocessing"]["gates"]
    assert (gate["name"], gate["passed"]) == ("bit_exact", True)
    assert "preprocessing" in text.splitlines()[0]


def test_the_schema_knows_the_cpus_that_there_are() -> None:
    text = (ROOT / "edgepack" / "spec" / "schema" / "target.schema.json").read_text()
    listed = json.loads(text)["properties"]["emulate"]["properties"]["cpus"]["items"]["enum"]
    assert listed == list(CPUS)


@pytest.mark.usefixtures("arm", "x86")
def test_doctor_tells_what_can_be_emulated(tmp_path: Path) -> None:
    def emulators(cache: Path) -> dict[str, Any]:
        findings = json.loads(edgepack("doctor", "--json", cache=cache).stdout)
        return next(f for f in findings if f["name"] == "emulators")

    assert emulators(KEPT)["present"]
    assert emulators(KEPT)["detail"] == f"ready: {', '.join(CPUS)}"
    unprepared = emulators(tmp_path)
    assert not unprepared["present"]
    assert unprepared["partial"]
    assert unprepared["detail"].startswith("ready: Haswell, Skylake-Client; not prepared: cortex-")
    assert unprepared["hint"] == "edgepack emulator prepare"
