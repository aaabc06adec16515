"""cuda-fp16 on a host without a GPU: an overflow that only a GPU would show is found here.

A network that is quiet at both ends and reaches some 1e5 in the middle, in fp16 twice: by a
converter that does not measure, and by `half`. onnxruntime's CPU provider computes both in
float32 and would pass both.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgepack import passes
from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.passes.options import PassOptions
from support import ROOT
from support.build_cases import Answer, Home, ask, build, entry
from support.bundle_cases import run_bundle

sys.path.insert(0, str(ROOT / "benchmarks"))
import on_gpu
from support.half_nets import NETS, loud, naive
from support.quantize_nets import images, run, snr_db


@dataclass(frozen=True)
class NaiveOptions(PassOptions):
    """The converter of others has nothing to choose here."""


class Naive(passes.GraphPass[NaiveOptions]):
    """onnxruntime's own conversion to fp16, as a pass."""

    name = "naive"
    options = NaiveOptions

    def apply(
        self, model: onnx.ModelProto, samples: Samples | None, options: NaiveOptions,
        progress: Progress,
    ) -> PassResult[onnx.ModelProto]:  # fmt: skip
        return PassResult(naive(model), True, ("Everything became fp16.",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """loud.onnx with its samples."""
    made = tmp_path_factory.mktemp("loud")
    onnx.save(loud(), made / "loud.onnx")
    for role, seed in (("calibration", 1), ("evaluation", 2)):
        np.savez(made / f"{role}.npz", x=images(64, seed=seed))
    return made


def arguments(folder: Path, *more: str, target: str = "cuda-fp16") -> list[str]:
    return [
        "build", str(folder / "loud.onnx"), "--target", target,
        "--calibration", str(folder / "calibration.npz"),
        "--evaluation", str(folder / "evaluation.npz"), "--allow-unverified", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The bundle of `half`, and what its build said."""
    output = tmp_path_factory.mktemp("made") / "loud.edgepack"
    return output, build(arguments(folder), output)


def test_a_conversion_that_does_not_measure_is_caught_without_a_gpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes.PASSES, "naive", Naive)
    output = tmp_path / "naive.edgepack"
    answer = ask(*arguments(folder, "--chain", "naive", "--output", str(output)))
    assert (answer.status, answer.code) == (1, "gate-missed")
    assert not output.exists()
    assert "Non-finite values" in answer.document["error"]["why"]
    assert "quality first dropped in the stage 'naive'" in answer.document["error"]["why"]
    rejected = tmp_path / "naive.rejected.edgepack"
    assert run_bundle(rejected, "verify", "--json", "--stand-in").returncode == 1
    # The very file, run as onnxruntime runs it on a CPU: nothing to be seen.
    model = onnx.load_model_from_string(entry(rejected, "model/model.onnx"))
    fed = {"x": images(64, seed=2)}
    assert snr_db(run(loud(), fed)[0], run(model, fed)[0]) > 50


def test_half_keeps_the_loud_layers_and_passes(made: tuple[Path, Answer]) -> None:
    path, answer = made
    report = answer.document
    assert report["verdict"] == "UNVERIFIED"
    assert [reason["code"] for reason in report["reasons"]] == ["not-on-target"]
    assert "verify --variant onnxruntime-cuda" in answer.stderr
    assert report["target"]["precision"] == "fp16"
    (output,) = report["quality"]["outputs"].values()
    assert output["nonfinite"] == 0
    assert output["snr_db"] > 40
    stage = answer.stage("half")
    reasons = {node["name"]: node["reason"] for node in stage["details"]["kept"]}
    loudest = max(node["value"] or 0 for node in stage["details"]["kept"])
    assert loudest > 65504
    assert f"reaches {loudest:.3g}" in " ".join(reasons.values())
    assert any(note.startswith("Kept in fp32: ") for note in stage["notes"])
    assert stage["details"]["nodes_half"] > 0
    # What the stage tells of parity is what a GPU would give, not what a CPU computes by itself.
    assert stage["parity"]["gemm_10"]["snr_db"] == pytest.approx(output["snr_db"], abs=3)
    assert any("not run on a GPU" in warning for warning in report["warnings"])
    assert path.stat().st_size > 0


def test_the_bundle_asks_for_a_gpu_and_falls_back_aloud(made: tuple[Path, Answer]) -> None:
    path, _ = made
    verdict = run_bundle(path, "verify", "--json")
    found = json.loads(verdict.stdout)
    if found["variant"]["engine"] == "onnxruntime-cuda":
        pytest.skip("this host has a GPU: tests/gpu runs there")
    # A script that checks the exit status learns that no GPU ran.
    assert (verdict.returncode, found["verdict"]) == (1, "UNVERIFIED")
    assert [reason["code"] for reason in found["reasons"]] == ["not-on-target"]
    named = run_bundle(path, "verify", "--json", "--variant", "onnxruntime")
    assert (named.returncode, json.loads(named.stdout)["verdict"]) == (0, "PASS")
    assert found["variant"]["engine"] == "onnxruntime"
    assert found["variant"]["fallback"]
    assert "FALLBACK" in run_bundle(path, "verify").stderr
    # On the CPU that stood in for the GPU, the same bits.
    assert all(output["bit_exact"] for output in found["fidelity"]["outputs"].values())


def test_the_fallback_gives_what_the_build_host_gave_and_not_float32(
    made: tuple[Path, Answer], tmp_path: Path
) -> None:
    path, _ = made
    answers = tmp_path / "answers.npz"
    done = run_bundle(path, "run", "--output", str(answers))
    assert done.returncode == 0, done.stderr
    with np.load(answers) as found:
        (output,) = found.values()
    index = json.loads(entry(path, "bundle.json"))
    count = index["reference"]["samples"]
    model = onnx.load_model_from_string(entry(path, "model/model.onnx"))
    fed = [images(64, seed=2)[i : i + 1] for i in range(count)]
    elided = np.stack([run(model, {"x": x})[0] for x in fed])
    assert output.shape == elided.shape
    assert not np.array_equal(output, elided)
    assert snr_db(elided, output) > 50


def test_a_gpu_needs_one_package_and_not_two_that_overwrite_each_other(
    made: tuple[Path, Answer],
) -> None:
    lines = run_bundle(made[0], "info", "--requirements").stdout.splitlines()
    packages = {line.partition("==")[0] for line in lines}
    assert packages == {"numpy", "onnxruntime-gpu[cuda,cudnn]"}
    assert all("==" in line and "python_version" in line for line in lines)


def test_two_builds_give_the_same_content(
    folder: Path, made: tuple[Path, Answer], tmp_path: Path
) -> None:
    again = build(arguments(folder, "--refresh"), tmp_path / "again.edgepack")
    digest = made[1].document["bundle"]["content_digest"]
    assert again.document["bundle"]["content_digest"] == digest


def test_a_float32_network_on_a_gpu_is_told_as_that(folder: Path, tmp_path: Path) -> None:
    answer = build(arguments(folder, "--chain", "none"), tmp_path / "x.edgepack")
    assert any("the ONNX has no fp16 tensors" in note for note in answer.stage("engine")["notes"])
    assert answer.document["target"]["precision"] == "fp32"


def test_half_after_quantize_in_one_build(folder: Path, tmp_path: Path) -> None:
    """The opset that scales in fp16 need, and a chain of two, from a profile of the user's own."""
    text = (ROOT / "targets" / "cuda-fp16.toml").read_text()
    profile = tmp_path / "mine.toml"
    profile.write_text(
        text.replace("opset = 18", "opset = 21")
        .replace('default = "half"', 'default = "quantize,half"')
        .replace("snr_db = 40\nagreement = 0.99", "snr_db = 20\nagreement = 0.9")
        .replace("[half]", '[quantize]\nscheme = "tensorrt"\nrange = "full"\n[half]')
    )
    answer = build(arguments(folder, target=str(profile)), tmp_path / "x.edgepack")
    assert answer.document["target"]["precision"] == "int8+fp16"
    assert answer.stage("half")["details"]["nodes_half"] > 0


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "cuda-fp16") for name in NETS),
        ("residual", "tensorrt-int8"),
        ("gated", "tensorrt-int8"),
    ],
)
def test_what_is_built_for_the_tests_on_a_gpu_holds_its_gates_here(
    name: str, target: str, tmp_path: Path
) -> None:
    case = on_gpu.of_arrays(name, NETS[name][0](), NETS[name][1], tmp_path)
    bundle = on_gpu.built(case, target, tmp_path)
    found = on_gpu.verified(bundle)
    assert found["variant"]["engine"] == "onnxruntime" or not on_gpu.why_not()
    assert set(found["fidelity_snr_db"].values()) == {None} or not on_gpu.why_not()


def test_what_tests_on_a_gpu_run_runs_here_too(torch_home: Home, tmp_path: Path) -> None:
    """The functions of benchmarks/on_gpu.py, with the CPU in the GPU's place."""
    assert shutil.which("g++"), "torch.compile needs a compiler"
    options = ("--arch", f"{torch_home / 'nets.py'}:tiny",
               "--calibration", torch_home / "calibration.npz",
               "--evaluation", torch_home / "evaluation.npz")  # fmt: skip
    case = on_gpu.Case(
        "tiny", Path(torch_home / "tiny.pt"), options=options, arch=f"{torch_home / 'nets.py'}:tiny"
    )
    in_torch = on_gpu.TORCH[:2]
    row = on_gpu.measured(case, "cuda-fp16", "cpu", rounds=1, seconds=0.05, in_torch=in_torch)
    assert row["variant"]["engine"] == "onnxruntime"
    assert set(row["fidelity_snr_db"].values()) == {None}
    assert 0.4 < row["bytes_ratio"] < 1
    names = {"edgepack", "onnxruntime fp32", *(name for name, _, _ in in_torch)}
    assert set(row["latency_ms"]) == names
    assert all(found["p50"] > 0 for found in row["latency_ms"].values())
    assert row["latency_ms"]["edgepack"]["times_edgepack"] == 1
    path = on_gpu.written([row], tmp_path, "this CPU")
    assert path.name == "gpu-this-cpu.json"
    document: Mapping[str, Any] = json.loads(path.read_text())
    assert set(document) == {"date", "hardware", "models"}
    assert document["hardware"]["torch"] == on_gpu.hardware()["torch"]
    assert "tiny for cuda-fp16 in onnxruntime" in on_gpu.table(document["models"][0])
    assert {case.name for case in on_gpu.examples()} >= {"fashion-resnet"}
