"""What a build leaves behind and says: the bundle, the report, stdout, stderr, exit statuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack import load, report
from support.build_cases import (
    SIZE,
    Home,
    ask,
    build,
    digest_of,
    edgepack,
    entry,
    images,
    one_document,
)
from support.bundle_cases import run_bundle

UNREACHABLE = "schema = 1\n[gates.quality]\nsnr_db = 300\n"


def evaluated(home: Home, model: str = "tiny.onnx", *options: str) -> list[str]:
    return home.build(model, "--evaluation", home / "evaluation.npz", *options)


def test_the_report_in_the_bundle_is_valid_and_the_one_that_was_told(
    home: Home, built: Path, tmp_path: Path
) -> None:
    inside = json.loads(entry(built, "report/report.json"))
    report.validate(inside)
    assert inside["bundle"]["content_digest"] == digest_of(built)
    assert b"<html" in entry(built, "report/report.html")[:400]
    answer = build(evaluated(home), tmp_path / "x.edgepack")
    report.validate(answer.document)
    told = {key for key in inside if inside[key] != answer.document[key]}
    assert told <= {"created", "build", "bundle", "ledger", "memory"}
    assert answer.document["bundle"]["bytes"] == (tmp_path / "x.edgepack").stat().st_size


def test_every_stage_has_its_record(built: Path) -> None:
    inside = json.loads(entry(built, "report/report.json"))
    records = {record["stage"]: record for record in inside["ledger"]}
    assert list(records) == [
        "source", "samples", "original", "export", "simplify", "quantize", "auction", "engine",
        "bundle", "verify", "emulate", "latency",
    ]  # fmt: skip
    for name in ("export", "simplify", "quantize"):
        (parity,) = records[name]["parity"].values()
        assert parity["snr_db"] > (25 if name == "quantize" else 90)
        assert records[name]["bytes"] > 0
        assert records[name]["parameters"] > 0
    assert records["latency"]["status"] == "skipped"
    assert all(record["notes"] for record in records.values() if record["status"] == "skipped")
    assert all(record["seconds"] >= 0 for record in records.values())


def test_latency_is_measured_side_by_side(home: Home, tmp_path: Path) -> None:
    arguments = [a if a != "none" else "smoke" for a in evaluated(home)]
    found = build(arguments, tmp_path / "x.edgepack").document["latency"]
    assert found["length"] == "smoke"
    assert found["ratio"] == pytest.approx(found["original"]["p50"] / found["model"]["p50"])
    assert found["rounds"]
    assert found["load"]["cores"] >= 1
    assert found["spread"] >= 0
    # Whatever else runs here: what is disturbed says so, and says why.
    quiet = found["load"]["others"] in (None, 0.0) and found["spread"] == 0
    assert not (quiet and found["disturbed"])


def test_memory_is_that_of_the_loader(home: Home, tmp_path: Path) -> None:
    """A process inherits the peak of the one that started it, as getrusage tells it."""
    ballast = np.ones(600 << 20, np.uint8)
    answer = build(evaluated(home), tmp_path / "x.edgepack")
    del ballast
    assert answer.document["memory"]["peak_rss_bytes"] < 400 << 20


def test_two_builds_give_the_same_content(torch_home: Home, tmp_path: Path) -> None:
    """In two folders and two processes, from the weights on, nothing from a cache."""
    digests, files = [], []
    for name in ("one", "two"):
        folder = tmp_path / name
        shutil.copytree(torch_home.folder, folder)
        done = edgepack(
            "build", "tiny.pt", "--target", "cpu-fbgemm", "--arch", "nets.py:tiny",
            "--calibration", "calibration.npz", "--evaluation", "evaluation.npz",
            "--latency", "none", "--refresh", "-q", "--json", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        bundle = folder / "tiny-cpu-fbgemm.edgepack"
        statuses = {r["status"] for r in one_document(done.stdout)["ledger"]}
        assert "cached" not in statuses
        digests.append(digest_of(bundle))
        files.append(entry(bundle, "model/model.onnx"))
    assert files[0] == files[1]
    assert digests[0] == digests[1]


def test_no_path_of_this_machine_is_in_the_bundle(home: Home, built: Path) -> None:
    data = built.read_bytes()
    for place in (home.folder, built.parent, Path(sys.prefix), Path.cwd()):
        assert str(place).encode() not in data


def test_loading_from_edgepack_and_from_the_bundle_alone(
    home: Home, built: Path, tmp_path: Path
) -> None:
    fed = images(1, 9)
    ours = load(built)(image=fed)["scores"]
    np.save(tmp_path / "fed.npy", fed)
    code = (
        "import sys, numpy; sys.path.insert(0, sys.argv[1])\n"
        "from runtime import load\n"
        "assert 'edgepack' not in sys.modules\n"
        "print(load()(image=numpy.load('fed.npy'))['scores'].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(built)], cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert bytes.fromhex(done.stdout) == ours.tobytes()


def test_run_gives_what_load_gives(home: Home, built: Path, tmp_path: Path) -> None:
    done = edgepack("run", str(built), "--input", "evaluation.npz", "--output", "out.npz",
                    "--json", cwd=home.folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert one_document(done.stdout)["outputs"] == {"scores": ["float32", 40, 4]}
    with np.load(home / "out.npz") as outputs, np.load(home / "evaluation.npz") as samples:
        model = load(built)
        for i in range(3):
            mine = model(image=samples["image"][i : i + 1])["scores"]
            np.testing.assert_array_equal(outputs["scores"][i : i + 1], mine)
    Path(home / "out.npz").unlink()


def test_verify_bench_inspect_and_info_as_json(built: Path, tmp_path: Path) -> None:
    verdict = one_document(edgepack("verify", str(built), "--json").stdout)
    assert verdict["passed"] is True
    found = one_document(edgepack("bench", str(built), "--length", "smoke", "--json").stdout)
    assert found["model"]["p50"] > 0
    page = tmp_path / "page.html"
    document = one_document(edgepack("inspect", str(built), "--html", str(page), "--json").stdout)
    assert document["index"]["content_digest"] == digest_of(built)
    # Drawn anew, since the bundle's own size and hash cannot stand in it.
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    assert digest in page.read_text(encoding="utf-8")
    assert digest not in entry(built, "report/report.html").decode()
    assert found["trust"] == verdict["trust"] == document["trust"]
    assert document["trust"]["sha256"] == verdict["bundle"]["sha256"] == digest
    info = json.loads(run_bundle(built, "info", "--json").stdout)
    assert info.pop("sha256") == digest
    assert info.pop("variant")["name"] == verdict["variant"]["name"] == "onnxruntime"
    assert info == document["index"]


def test_quiet_says_nothing_but_warnings(home: Home, tmp_path: Path) -> None:
    output = str(tmp_path / "x.edgepack")
    answer = ask(*home.build("tiny.onnx"), "--output", output, "-q")
    assert answer.status == 0
    assert answer.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in answer.stderr.splitlines())
    answer = ask(*evaluated(home), "--output", output, "-q")
    assert answer.status == 0
    few, unproved = answer.stderr.splitlines()
    assert "40 evaluation samples are too few" in few
    assert unproved == "warning: not verified on CPUs without VNNI (--no-emulate)"


def test_the_report_goes_to_stdout_and_progress_to_stderr(home: Home, tmp_path: Path) -> None:
    done = edgepack(*evaluated(home), "--output", str(tmp_path / "x.edgepack"),
                    env={"NO_COLOR": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout
    assert "PASS" not in done.stderr
    assert "quantize" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_dry_run_names_the_stages_of_the_build_and_writes_nothing(
    home: Home, built: Path, tmp_path: Path
) -> None:
    before = sorted(home.folder.rglob("*"))
    done = edgepack(*evaluated(home), "--dry-run", "--json", cwd=tmp_path,
                    env={"EDGEPACK_CACHE": str(tmp_path / "cache")})  # fmt: skip
    assert done.returncode == 0, done.stderr
    planned = one_document(done.stdout)
    records = json.loads(entry(built, "report/report.json"))["ledger"]
    ran = [
        record["stage"]
        for record in records
        if record["status"] != "skipped" or record["stage"] in planned["stages"]
    ]
    assert ran == planned["stages"]
    assert planned["estimate"]["memory_bytes"] > planned["estimate"]["disk_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    assert sorted(home.folder.rglob("*")) == before


def test_a_dry_run_tells_what_is_missing(home: Home, tmp_path: Path) -> None:
    arguments = home.build("tiny.onnx", "--dry-run", calibration="")
    done = edgepack(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert one_document(done.stdout)["missing"] == ["calibration"]
    text = edgepack(*arguments, cwd=tmp_path).stdout
    assert "would write" in text
    assert "calibration  none, but the chain needs them" in text


def test_a_module_of_samples_is_looked_for_beside_the_manifest(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "samples_of_mine.py").write_text(
        "import numpy\n\n\n"
        "def few():\n"
        f"    arrays = numpy.load({home / 'calibration.npz'!r})\n"
        "    yield from ({'image': image} for image in arrays['image'][:16])\n"
    )
    text = 'schema = 1\n[calibration]\nsamples = "samples_of_mine:few"\n'
    (folder / "mine.toml").write_text(text)
    arguments = home.build("tiny.onnx", "--manifest", str(folder / "mine.toml"), calibration="")
    answer = build(arguments, tmp_path / "x.edgepack")
    assert answer.document["quality"]["samples"] == 16


def test_random_calibration_proves_nothing_and_says_so(home: Home, tmp_path: Path) -> None:
    arguments = home.build("tiny.onnx", "--random-calibration", calibration="")
    output = tmp_path / "x.edgepack"
    answer = ask(*arguments, "--output", str(output))
    assert answer.status == 1
    assert answer.document["verdict"] == "UNVERIFIED"
    assert [reason["code"] for reason in answer.document["reasons"]] == ["random-samples"]
    # One line says why, and the command that changes it works when it is typed.
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("UNVERIFIED: ")]
    assert "--calibration PATH" in line
    assert "--random-calibration" not in line
    assert any("random data" in warning for warning in answer.document["warnings"])
    index = json.loads(entry(tmp_path / "x.edgepack", "bundle.json"))
    assert index["provenance"]["proven"] is False


def test_without_evaluation_samples_it_is_judged_on_calibration_and_says_so(
    home: Home, tmp_path: Path
) -> None:
    answer = build(home.build("tiny.onnx"), tmp_path / "x.edgepack")
    assert answer.document["quality"]["samples"] == 120
    assert any(
        "judged on the calibration samples" in warning for warning in answer.document["warnings"]
    )


def test_labels_gate_the_metric_beside_the_agreement(home: Home, tmp_path: Path) -> None:
    gates = {}
    for name in ("evaluation.npz", "unlabelled.npz"):
        arguments = home.build("tiny.onnx", "--evaluation", home / name, "--strict")
        quality = build(arguments, tmp_path / "x.edgepack").document["quality"]
        gates[name] = {gate["name"]: gate["bound"] for gate in quality["gates"]}
        del gates[name]["worst_db"]
    # The stricter bounds of the profile.
    assert gates["evaluation.npz"] == {"snr_db": 20, "agreement": 0.99, "metric_ratio": 0.999}
    assert gates["unlabelled.npz"] == {"snr_db": 20, "agreement": 0.99}


def test_max_drop_takes_the_place_of_the_ratio(home: Home, tmp_path: Path) -> None:
    answer = build(evaluated(home, "tiny.onnx", "--max-drop", "2.5"), tmp_path / "x.edgepack")
    bounds = {gate["name"]: gate["bound"] for gate in answer.document["quality"]["gates"]}
    # Agreement may fall by as much as the metric.
    agreement = pytest.approx(0.97 - 0.025)
    assert bounds == {"snr_db": 10, "max_drop": 2.5, "agreement": agreement, "worst_db": 10}


def test_a_missed_gate_keeps_the_bundle_aside(home: Home, built: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.toml"
    manifest.write_text(UNREACHABLE)
    output = tmp_path / "out" / "x.edgepack"
    output.parent.mkdir()
    shutil.copy(built, output)
    before = output.read_bytes()
    arguments = evaluated(home, "tiny.onnx", "--manifest", str(manifest), "--output", str(output))
    answer = ask(*arguments)
    assert (answer.status, answer.code) == (1, "gate-missed")
    aside = output.with_name("x.rejected.edgepack")
    assert str(aside) in answer.document["error"]["hint"]
    # No chain can hold it: the exported original does not.
    assert "'simplify'" in answer.document["error"]["why"]
    # What was there is untouched, and the rejected one is whole, with its report.
    assert output.read_bytes() == before
    assert sorted(output.parent.iterdir()) == [output, aside, Path(f"{aside}.sha256")]
    digest_of(aside)
    inside = json.loads(entry(aside, "report/report.json"))
    assert inside["verdict"] == "FAIL"
    # It does not pass on a device either.
    done = run_bundle(aside, "verify", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["passed"] is False


def test_a_missed_gate_where_nothing_was(home: Home, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(UNREACHABLE)
    done = edgepack(*evaluated(home), "--manifest", str(tmp_path / "m.toml"),
                    "--output", str(tmp_path / "x.edgepack"))  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "error[gate-missed]" in done.stderr
    assert not (tmp_path / "x.edgepack").exists()


def test_a_chain_of_its_own(home: Home, tmp_path: Path) -> None:
    quantized = evaluated(home, "tiny.onnx", "--chain", "quantize:calibrator=minmax:range=full")
    answer = build(quantized, tmp_path / "q.edgepack")
    assert answer.document["target"]["precision"] == "int8"
    index = json.loads(entry(tmp_path / "q.edgepack", "bundle.json"))
    (step,) = index["provenance"]["chain"]
    assert (step["options"]["calibrator"], step["options"]["range"]) == ("minmax", "full")
    answer = build(evaluated(home, "tiny.onnx", "--chain", "none"), tmp_path / "n.edgepack")
    assert answer.document["target"]["precision"] == "fp32"
    assert answer.document["quality"]["outputs"]["scores"]["snr_db"] is None or (
        answer.document["quality"]["outputs"]["scores"]["snr_db"] > 90
    )


def test_interrupting_leaves_nothing(home: Home, tmp_path: Path) -> None:
    """SIGINT, as Ctrl-C sends it, while the samples' function is running."""
    import signal

    (tmp_path / "slow.py").write_text(
        "import sys, time, numpy\n\n\ndef samples():\n"
        "    print('here', file=sys.stderr, flush=True)\n"
        f"    time.sleep(60)\n    yield {{'image': numpy.zeros((1, {SIZE}, {SIZE}), 'f4')}}\n"
    )
    arguments = home.build("tiny.onnx", "--calibration", "slow.py:samples", calibration="")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepack", *arguments, "--output", "x.edgepack"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "here\n" in iter(process.stderr.readline, "")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["slow.py"]
