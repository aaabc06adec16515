"""edgepack never ships what it has not proved: ways in which a build could, each closed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack.runtime.parity.gates import judge
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.parity.parts import Part
from edgepack.runtime.tensor import Tensor
from support import ROOT
from support.build_cases import Home, ask, build, edgepack
from support.bundle_cases import run_bundle


def on_evaluation(home: Home, *more: str) -> list[str]:
    return [
        "build", str(home / "tiny.onnx"), "--target", "cpu-fbgemm", "--latency", "none",
        "--calibration", str(home / "calibration.npz"),
        "--evaluation", str(home / "evaluation.npz"), *more,
    ]  # fmt: skip


def manifest(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text("schema = 1\n" + text)
    return str(path)


def test_a_rejected_bundle_fails_its_own_verify(home: Home, tmp_path: Path) -> None:
    stated = manifest(tmp_path, "[gates.quality]\nsnr_db = 90\n")
    output = tmp_path / "x.edgepack"
    answer = ask(*on_evaluation(home, "--manifest", stated, "--output", str(output)))
    assert answer.status == 1
    done = run_bundle(tmp_path / "x.rejected.edgepack", "verify", "--json")
    assert done.returncode == 1
    assert not json.loads(done.stdout)["passed"]


def test_a_bundle_of_random_numbers_says_so_wherever_it_goes(home: Home, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    build(
        ["build", str(home / "tiny.onnx"), "--target", "cpu-fbgemm", "--random-calibration",
         "--latency", "none", "--no-emulate", "--allow-unverified"], output,
    )  # fmt: skip
    done = run_bundle(output, "verify", "--json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["verdict"], verdict["passed"]) == (1, "UNVERIFIED", True)
    assert [reason["code"] for reason in verdict["reasons"]] == ["random-samples"]
    allowed = run_bundle(output, "verify", "--allow-unverified")
    assert allowed.returncode == 0
    assert "verdict: UNVERIFIED" in allowed.stdout
    assert "UNVERIFIED when it was built" in run_bundle(output, "info").stdout


def test_random_is_no_name_of_samples(home: Home, tmp_path: Path) -> None:
    arguments = on_evaluation(home, "--output", str(tmp_path / "x.edgepack"))
    arguments[arguments.index("--evaluation") + 1] = "random"
    answer = ask(*arguments)
    assert (answer.status, answer.code) == (2, "samples-not-found")


@pytest.mark.parametrize(
    ("reference", "measured"), [((0, 3), (1, 3)), ((1, 3), (0, 3)), ((2, 3), (3, 3))]
)
def test_outputs_of_another_size_are_never_equal(
    reference: tuple[int, ...], measured: tuple[int, ...]
) -> None:
    parity = Parity(Tensor("y", "float32", ("batch", 3)), [Part(None, (), 1.0)])
    parity.update(np.zeros(reference, np.float32), np.zeros(measured, np.float32))
    found = parity.result()
    assert found["nonfinite"] > 0
    assert not all(gate["passed"] for gate in judge({"snr_db": 0}, {"y": found}))


def test_a_question_without_a_gate_is_refused(home: Home, tmp_path: Path) -> None:
    profile = tmp_path / "exact.toml"
    text = (ROOT / "targets" / "cpu-fbgemm.toml").read_text()
    head, _, tail = text.partition("[gates.fidelity]")
    profile.write_text(
        head + "[gates.fidelity]\nbit_exact = true\n" + tail[tail.index("[emulate]") :]
    )
    arguments = on_evaluation(home, "--chain", "none", "--output", str(tmp_path / "x.edgepack"))
    arguments[arguments.index("cpu-fbgemm")] = str(profile)
    answer = ask(*arguments)
    assert (answer.status, answer.code) == (2, "gates-empty")


@pytest.mark.parametrize(
    "text",
    [
        "[gates.quality]\nmetric_ratio = 0.99\n",
        "[gates.quality]\nmax_drop = 1.0\n",
        '[gates.quality]\nagreement = 0.9\n[[outputs]]\nname = "scores"\nkind = "values"\n',
    ],
)
def test_no_stated_gate_is_dropped(home: Home, tmp_path: Path, text: str) -> None:
    name = onnx.load(home / "tiny.onnx").graph.output[0].name
    with np.load(home / "evaluation.npz") as arrays:
        unlabelled = {k: v for k, v in arrays.items() if k != "labels"}
    np.savez(tmp_path / "unlabelled.npz", **unlabelled)
    stated = manifest(tmp_path, text.replace('"scores"\nkind', f'"{name}"\nkind'))
    arguments = on_evaluation(home, "--manifest", stated, "--output", str(tmp_path / "x.edgepack"))
    arguments[arguments.index("--evaluation") + 1] = str(tmp_path / "unlabelled.npz")
    answer = ask(*arguments)
    assert (answer.status, answer.code) == (2, "metric-needs-labels")


def test_a_lowered_gate_and_a_tiny_set_are_told(home: Home, tmp_path: Path) -> None:
    with np.load(home / "evaluation.npz") as arrays:
        np.savez(tmp_path / "few.npz", **{k: v[:3] for k, v in arrays.items()})
    stated = manifest(tmp_path, "[gates.quality]\nsnr_db = 3\n")
    arguments = on_evaluation(home, "--manifest", stated)
    arguments[arguments.index("--evaluation") + 1] = str(tmp_path / "few.npz")
    warnings = build(arguments, tmp_path / "x.edgepack").document["warnings"]
    assert any("snr_db was lowered to 3" in warning for warning in warnings)
    assert any("3 evaluation samples are too few" in warning for warning in warnings)


def test_labels_of_another_model_are_refused_unless_chance_is_allowed(
    home: Home, tmp_path: Path
) -> None:
    with np.load(home / "evaluation.npz") as arrays:
        samples = dict(arrays)
    samples["labels"] = (samples["labels"] + 1) % 4
    np.savez(tmp_path / "shifted.npz", **samples)
    arguments = on_evaluation(home)
    arguments[arguments.index("--evaluation") + 1] = str(tmp_path / "shifted.npz")
    answer = ask(*arguments, "--output", str(tmp_path / "x.edgepack"))
    assert (answer.status, answer.code) == (2, "original-chance")
    report = build(arguments, tmp_path / "x.edgepack", "--allow-chance").document
    assert any("no more often than by guessing" in warning for warning in report["warnings"])
    gates = {gate["name"] for gate in report["quality"]["gates"]}
    assert {"snr_db", "agreement"} <= gates
    assert "metric_ratio" not in gates
    assert report["quality"]["metric"] is None


def test_no_miss_is_free_where_none_is_allowed() -> None:
    found = {
        "compared": "values",
        "part": "",
        "snr_db": 30.0,
        "cosine": 1.0,
        "bit_exact": False,
        "nonfinite": 0,
    }
    found |= {"decisions": 100, "top1_agreement": 0.99, "top5_agreement": 1.0}
    (gate,) = judge({"agreement": 1.0}, {"y": found})
    assert not gate["passed"]


def test_a_fixed_batch_is_fed_whole(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "project")],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "f.onnx")
    samples = np.random.default_rng(1).normal(size=(120, 16)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=samples)
    output = tmp_path / "f.edgepack"
    build(
        ["build", str(tmp_path / "f.onnx"), "--target", "cpu-fbgemm", "--latency", "none",
         "--calibration", str(tmp_path / "s.npz"), "--chain", "none"], output,
    )  # fmt: skip
    assert run_bundle(output, "verify").returncode == 0


@pytest.mark.parametrize("what", ["manifest", "arch"])
def test_nothing_that_is_read_is_overwritten(
    home: Home, torch_home: Home, tmp_path: Path, what: str
) -> None:
    stated = manifest(tmp_path, "")
    code = tmp_path / "nets.py"
    code.write_bytes(Path(torch_home / "nets.py").read_bytes())
    output = {"manifest": stated, "arch": str(code)}[what]
    before = Path(output).read_bytes()
    done = edgepack(
        "build", str(torch_home / "tiny.pt"), "--target", "cpu-fbgemm", "--arch", f"{code}:tiny",
        "--manifest", stated, "--calibration", str(home / "calibration.npz"), "--latency", "none",
        "--output", output, "--json",
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "output-is-input"
    assert Path(output).read_bytes() == before


def test_no_path_of_the_factory_is_in_the_bundle(torch_home: Home, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    build(
        ["build", str(torch_home / "tiny.pt"), "--target", "cpu-fbgemm", "--latency", "none",
         "--arch", f"{torch_home / 'nets.py'}:tiny",
         "--calibration", str(torch_home / "calibration.npz")], output,
    )  # fmt: skip
    assert str(torch_home.folder).encode() not in output.read_bytes()


@pytest.mark.parametrize("bound", ["nan", "inf"])
def test_a_bound_is_a_number(home: Home, tmp_path: Path, bound: str) -> None:
    answer = ask(*on_evaluation(home, "--max-drop", bound, "--output", str(tmp_path / "x")))
    assert answer.status == 2
    stated = manifest(tmp_path, f"[gates.quality]\nsnr_db = {bound}\n")
    answer = ask(*on_evaluation(home, "--manifest", stated, "--output", str(tmp_path / "x")))
    assert (answer.status, answer.code) == (2, "spec-not-toml")
