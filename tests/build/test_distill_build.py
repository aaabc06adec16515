"""Whole builds with `distill` in their chain: real pictures, the cache, a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.build_cases import Answer, Home, ask, digest_of, images
from support.fashion_cases import ARCH, IMPORTS, TENSORS, WEIGHTS, need_pictures

pytest.importorskip("accelerate")

FEW = f"""{IMPORTS}
import fashion_student
from fashion_student import student


def training():
    images, labels = fashion_resnet.pictures("train")
    few = fashion_student.labels_of_few(labels)[:2000]
    yield {{"image": fashion_resnet.standardise(images[:2000]), "label": few}}


def calibration():
    images, _ = fashion_resnet.pictures("train")
    yield {{"image": fashion_resnet.standardise(images[-100:])}}


def evaluation():
    images, labels = fashion_resnet.pictures("test")
    yield {{"image": fashion_resnet.standardise(images[:400]), "label": labels[:400]}}
"""

MANIFEST = f"""
schema = 1
name = "few"
chain = "distill,quantize"

[model]
arch = "{ARCH}"
{TENSORS}
[training]
samples = "few.py:training"

[distill]
student = "few.py:student"
epochs = 5
lr = 0.01
holdout = 0.1

[calibration]
samples = "few.py:calibration"

[evaluation]
samples = "few.py:evaluation"

[gates.quality]
metric_ratio = 0.6
snr_db = 0
"""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 pictures to learn from, a student of 19,938 parameters, a few seconds."""
    need_pictures()
    folder = tmp_path_factory.mktemp("few")
    (folder / "few.py").write_text(FEW)
    (folder / "few.toml").write_text(MANIFEST)
    return folder


def build_few(few: Path, output: Path, *options: str) -> Answer:
    return ask(
        "build", str(WEIGHTS), "--target", "cpu-fbgemm", "--manifest", str(few / "few.toml"),
        "--latency", "none", "--no-emulate", "--output", str(output), *options,
    )  # fmt: skip


def test_a_student_learns_fashion(few: Path, tmp_path: Path) -> None:
    answer = build_few(few, tmp_path / "few.edgepack")
    assert answer.status == 0, answer.stderr
    stages = [record["stage"] for record in answer.document["ledger"]]
    assert stages.index("simplify") < stages.index("distill") < stages.index("quantize")
    record = answer.stage("distill")
    original = answer.stage("simplify")
    assert record["parameters"] < 21_000 < 250_000 < original["parameters"]
    assert record["bytes"] < original["bytes"] / 8
    assert record["parity"]["scores"]["snr_db"] > 0
    details = record["details"]
    assert details["parameters"] == 19_938
    assert (details["samples"], details["held_out"]) == (2000, 200)
    assert 0 < details["labelled"] <= 1000
    assert details["scores"][-1] > 0.65 > details["scores"][0] - 0.1
    metric = answer.document["quality"]["metric"]
    assert metric["model"] > 0.6
    assert answer.document["samples"]["training"]["count"] == 2000
    assert answer.document["source"]["parameters"] > 250_000
    # The original's graph, not the student's, is what size and speed are held against.
    sizes = answer.document["sizes"]
    assert sizes["export_bytes"] == answer.stage("export")["bytes"]
    assert sizes["original_bytes"] == min(sizes["file_bytes"], sizes["export_bytes"])

    again = build_few(few, tmp_path / "again.edgepack")
    assert again.stage("distill")["status"] == "cached"
    assert again.stage("distill")["notes"] == record["notes"]
    assert digest_of(tmp_path / "again.edgepack") == digest_of(tmp_path / "few.edgepack")

    other = build_few(few, tmp_path / "other.edgepack", "--chain", "distill:seed=1:epochs=1")
    assert "done    distill" in other.stderr  # whether its gates hold after one epoch or not


def test_another_gate_or_calibration_does_not_train_again(
    torch_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What another test has trained is not to be found.
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    np.savez(torch_home / "many.npz", image=images(160, seed=8))
    options = [
        "--arch", f"{torch_home / 'nets.py'}:tiny", "--evaluation", torch_home / "evaluation.npz",
        "--training", torch_home / "many.npz", "--chain", "distill:lr=1e-4:epochs=1,quantize",
        "--output", str(tmp_path / "x.edgepack"),
    ]  # fmt: skip
    first = ask(*torch_home.build("tiny.pt", *options))
    assert first.stage("distill")["status"] == "done", first.stderr
    second = ask(*torch_home.build("tiny.pt", *options, "--max-drop", "50",
                                   calibration="evaluation.npz"))  # fmt: skip
    assert second.stage("distill")["status"] == "cached"
    # What changes a batch is part of what was trained.
    augment = tmp_path / "augment.py"
    found = []
    for text in ("def same(inputs, generator):\n    return inputs\n", "# a comment\n"):
        with augment.open("a") as file:
            file.write(text)
        chain = f"distill:lr=1e-4:epochs=1:augment={augment}:same,quantize"
        found.append(ask(*torch_home.build("tiny.pt", *options, "--chain", chain)))
    assert [answer.stage("distill")["status"] for answer in found] == ["done", "done"]


def test_layers_of_a_hugging_face_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=40, dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=16,
        num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    transformers.DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    generator = np.random.default_rng(0)
    for name, count in (("training", 200), ("evaluation", 50)):
        ids = generator.integers(0, 40, (count, 10))
        np.savez(tmp_path / f"{name}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    (tmp_path / "loose.toml").write_text(
        "schema = 1\n[gates.quality]\nagreement = 0.3\nsnr_db = -10\n[distill]\nlayers = [0, 3]\n"
    )
    answer = ask(
        "build", str(tmp_path / "bert"), "--target", "cpu-fbgemm", "--latency", "none",
        "--no-emulate",
        "--manifest", str(tmp_path / "loose.toml"), "--output", str(tmp_path / "x.edgepack"),
        "--training", str(tmp_path / "training.npz"), "--chain", "distill:epochs=2:stop=gate",
        "--evaluation", str(tmp_path / "evaluation.npz"),
    )  # fmt: skip
    assert answer.status == 0, answer.stderr
    record = answer.stage("distill")
    assert record["notes"][0].startswith(
        "Trained layers 0, 3 of inner.distilbert.transformer.layer"
    )
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 48 + 2 * 2 * 16
    left_out = answer.document["source"]["parameters"] - record["details"]["parameters"]
    assert left_out == 2 * layer
    assert record["parameters"] < answer.stage("simplify")["parameters"]


def arguments(home: Home, output: Path) -> list[str]:
    options = [
        "--arch", f"{home / 'nets.py'}:tiny", "--evaluation", home / "evaluation.npz",
        "--training", home / "long.npz", "--output", str(output), "--json",
        "--chain", "distill:lr=1e-4:epochs=4:batch-size=8:checkpoint-steps=5,quantize",
    ]  # fmt: skip
    return [sys.executable, "-m", "edgepack", *home.build("tiny.pt", *options)]


def started(home: Home, output: Path, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "EDGEPACK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments(home, output),
        env=environment,
        cwd=output.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return json.loads(stdout)  # type: ignore[no-any-return]


def test_a_build_killed_while_it_trains_goes_on(torch_home: Home, tmp_path: Path) -> None:
    np.savez(torch_home / "long.npz", image=images(800, seed=8))
    whole = started(torch_home, tmp_path / "whole.edgepack", tmp_path / "other")
    killed = started(torch_home, tmp_path / "killed.edgepack", tmp_path / "cache")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cache").glob("stages/distill/.work-*/checkpoint.safetensors")):
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed.edgepack").exists()
    expected = finished(whole)
    report = finished(started(torch_home, tmp_path / "killed.edgepack", tmp_path / "cache"))
    details = {
        role: next(r for r in found["ledger"] if r["stage"] == "distill")["details"]
        for role, found in (("whole", expected), ("killed", report))
    }
    assert details["whole"]["resumed_at"] == 0 < details["killed"]["resumed_at"]
    assert details["whole"]["scores"] == details["killed"]["scores"]
    assert digest_of(tmp_path / "killed.edgepack") == digest_of(tmp_path / "whole.edgepack")
    assert not list((tmp_path / "cache").glob("stages/distill/.work-*"))
