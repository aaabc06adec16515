"""Bundles for TensorRT, built and judged where there is none: the ONNX runs on the CPU, aloud."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from edgepack.engine import tensorrt_rtx
from edgepack.runtime.device import gpu
from support.bundle_cases import run_bundle
from support.emulation import X86_64, edgepack, fresh, matrix, prepare
from support.int8_nets import UNRUN, build, mixed_onnx, run_build, saturating_onnx
from support.rtx_cases import linear_kernels, needs_rtx, plan_of

CHAIN = "quantize,half"
TARGET = "tensorrt-int8"
BATCH = ("--axis", "batch=1:2:8")
WITHOUT_TENSORRT = not gpu.probe(tensorrt=True).get("tensorrt")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def index_of(bundle: Path) -> dict[str, Any]:
    with zipfile.ZipFile(bundle) as archive:
        found: dict[str, Any] = json.loads(archive.read("bundle.json"))
    return found


def report_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(edgepack("inspect", str(bundle), "--json").stdout)["report"]
    return found


def model_of(bundle: Path) -> onnx.ModelProto:
    with zipfile.ZipFile(bundle) as archive:
        return onnx.load_model_from_string(archive.read("model/model.onnx"))


@X86_64
def test_a_build_needs_no_gpu_and_says_that_none_ran(base: Path) -> None:
    bundle = build(base, mixed_onnx, CHAIN, TARGET, BATCH)
    index, report = index_of(bundle), report_of(bundle)
    assert [variant["engine"] for variant in index["variants"]] == ["tensorrt", "onnxruntime"]
    assert index["variants"][0]["file"] is None
    assert index["engine_options"]["profiles"] == {
        "image": {"min": [1, 3, 12, 12], "opt": [2, 3, 12, 12], "max": [8, 3, 12, 12]}
    }
    assert any("not run by TensorRT" in warning for warning in report["warnings"])
    stages = {record["stage"]: record for record in report["ledger"]}
    assert [name for name in stages if name in ("quantize", "half", "engine")] == [
        "quantize", "half", "engine",
    ]  # fmt: skip
    told = " ".join(stages["engine"]["notes"])
    assert "python3 BUNDLE finish" in told
    assert ("parsed and built by TensorRT-RTX" in told) == tensorrt_rtx.installed()
    # What ships are pairs that TensorRT takes, and the rest in fp16.
    model = model_of(bundle)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert not {TensorProto.UINT8, TensorProto.INT32} & kinds
    assert index["gates"]["fidelity"] == {"snr_db": 15}


@X86_64
@pytest.mark.skipif(not WITHOUT_TENSORRT, reason="this machine has TensorRT: finish is for it")
def test_without_tensorrt_the_bundle_falls_back_aloud_and_proves_itself(base: Path) -> None:
    bundle = build(base, mixed_onnx, CHAIN, TARGET, BATCH)
    done = run_bundle(bundle, "verify", "--json")
    assert "FALLBACK" in done.stderr
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["verdict"]) == (1, "UNVERIFIED"), done.stderr
    # The very host and engine that gave the answers.
    assert verdict["fidelity"]["outputs"]["scores"]["bit_exact"]
    assert verdict["quality"]["outputs"]["scores"]["snr_db"] > 20


@X86_64
def test_what_is_not_stated_is_said_aloud_and_what_is_wrong_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    done = run_build(tmp_path / "a", mixed_onnx, CHAIN, TARGET, tmp_path / "cache", UNRUN)
    assert done.returncode == 0, done.stderr
    assert "warning: TensorRT needs a range for every dynamic axis" in done.stderr
    assert index_of(tmp_path / "a" / "net.edgepack")["engine_options"]["profiles"]["image"] == {
        "min": [1, 3, 12, 12], "opt": [1, 3, 12, 12], "max": [4, 3, 12, 12],
    }  # fmt: skip
    for number, (options, code) in enumerate(
        (
            (("--axis", "btch=1:1:4"), "axis-unknown"),
            (("--axis", "batch=2:4:8"), "axis-range"),
            (("--axis", "batch=4:2:8"), "axis-range"),
            (("--axis", "batch=few"), "axis-spec"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = run_build(folder, mixed_onnx, CHAIN, TARGET, tmp_path / "cache", options)
        assert done.returncode == 2
        assert f"error[{code}]" in done.stderr
        assert not (folder / "net.edgepack").exists()


@X86_64
def test_a_cpus_scheme_is_refused_for_tensorrt(tmp_path: Path) -> None:
    chain = "quantize:scheme=fbgemm:range=pair-safe"
    done = run_build(tmp_path, mixed_onnx, chain, TARGET, tmp_path / "cache", BATCH)
    assert done.returncode == 2
    assert "error[engine-qdq]" in done.stderr
    assert "its zero point is not 0" in done.stderr


@needs_rtx
@pytest.mark.parametrize(("network", "layers"), [(mixed_onnx, 7), (saturating_onnx, 3)])
def test_every_int8_model_multiplies_integers_in_tensorrt(
    base: Path, network: Any, layers: int
) -> None:
    bundle = build(base, network, CHAIN, TARGET, BATCH)
    kernels = list(linear_kernels(plan_of(model_of(bundle))).values())
    assert kernels == [("int8", "int8")] * layers


@X86_64
def test_integer_kernels_of_a_cpu_do_not_saturate_in_tensorrts_place(base: Path) -> None:
    """Pairs in float: on x86 without VNNI the same as here, where integers would saturate."""
    prepare("Haswell")
    bundle = build(base, saturating_onnx, "quantize", TARGET, BATCH)
    columns, _, status = matrix(bundle, "Haswell")
    # UNVERIFIED: every gate passed, and no TensorRT ran.
    assert (columns["Haswell"]["verdict"]["passed"], status) == (True, 1)
    found = columns["Haswell"]["verdict"]["fidelity"]["outputs"]["scores"]
    assert found["snr_db"] is None or found["snr_db"] > 60


@X86_64
def test_a_jetsons_bundle_is_judged_here_and_runs_on_an_emulated_arm(tmp_path: Path) -> None:
    prepare("cortex-a76")
    done = run_build(
        tmp_path, mixed_onnx, CHAIN, "jetson-trt", fresh(tmp_path), (*BATCH, *UNRUN[1:])
    )
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "net.edgepack"
    index, report = index_of(bundle), report_of(bundle)
    assert index["device"]["jetpack"] == "6.2"
    assert index["variants"][0]["needs"] == {
        "compute_capability": "==8.7", "engine_version": "==10.3",
    }  # fmt: skip
    assert index["engine_options"]["workspace_mb"] == 1024
    record = next(record for record in report["ledger"] if record["stage"] == "emulate")
    assert record["status"] == "done"
    assert record["notes"][0].startswith("cortex-a76, emulated: ")
