"""`accelerate launch` with two processes on the CPU: one training, one model, one bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from support import ROOT
from support.build_cases import Home, digest_of, images
from support.training_cases import drawn, labels_of, network

pytest.importorskip("accelerate")

LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m",
]  # fmt: skip

TRAIN = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import save_file
from support.training_cases import context, drawn, labels_of, network
from edgepack.passes.distill import DistillOptions, distill

folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "alone")
norm = sys.argv[2] == "norm"
teacher, x = network(0), drawn(400)
student = network(1)
if norm:
    student = nn.Sequential(student[0], nn.BatchNorm1d(16), nn.ReLU(), student[3]).eval()
data = context(folder / rank, teacher, {"x": x, "labels": labels_of(teacher, x)})
options = DistillOptions(epochs=3, batch_size=40, lr=0.02, holdout=0.1, checkpoint_steps=4)
found = distill(student, options, data)
save_file(found.model.state_dict(), folder / f"{rank}.safetensors")
(folder / f"{rank}.json").write_text(json.dumps(found.details))
"""


def launched(arguments: list[str], folder: Path, *, together: bool) -> subprocess.CompletedProcess:
    """Run a module in two processes, or alone; each on one thread."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "tests"), str(ROOT))),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    start = LAUNCH if together else [sys.executable, "-m"]
    return subprocess.run(
        [*start, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("norm", ["plain", "norm"])
def test_both_processes_have_the_same_model(tmp_path: Path, norm: str) -> None:
    (tmp_path / "train_together.py").write_text(TRAIN)
    arguments = ["train_together", str(tmp_path), norm]
    done = launched(arguments, tmp_path, together=True)
    assert done.returncode == 0, done.stderr
    first, second = (weights(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    details = json.loads((tmp_path / "0.json").read_text())
    assert details["processes"] == 2
    assert details["scores"][-1] > details["scores"][0]
    # As of one process: its batch is the two halves. Statistics of batches are of the halves.
    if norm == "plain":
        done = launched(arguments, tmp_path, together=False)
        assert done.returncode == 0, done.stderr
        alone = weights(tmp_path / "alone.safetensors")
        for name in first:
            assert torch.allclose(first[name], alone[name], atol=1e-4), name


@pytest.fixture
def pictures(torch_home: Home) -> Home:
    np.savez(torch_home / "many.npz", image=images(200, seed=8))
    return torch_home


def test_one_bundle_and_one_voice(pictures: Home, tmp_path: Path) -> None:
    output = tmp_path / "together.edgepack"
    options = [
        "--arch", f"{pictures / 'nets.py'}:tiny", "--evaluation", pictures / "evaluation.npz",
        "--training", pictures / "many.npz", "--chain", "distill:epochs=2:lr=1e-4,quantize",
        "--output", str(output), "--json",
    ]  # fmt: skip
    done = launched(["edgepack", *pictures.build("tiny.pt", *options)], tmp_path, together=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "PASS"
    (record,) = (r for r in report["ledger"] if r["stage"] == "distill")
    assert record["details"]["processes"] == 2
    assert "another number changes the last bits" in record["notes"][-1]
    assert done.stderr.count("done    distill") == 1
    assert len(digest_of(output)) == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "together.edgepack", "together.edgepack.sha256",
    ]  # fmt: skip


def test_a_mistake_is_told_once(pictures: Home, tmp_path: Path) -> None:
    options = ["--chain", "distill:epochs=2", "--arch", f"{pictures / 'nets.py'}:tiny"]
    done = launched(["edgepack", *pictures.build("tiny.pt", *options)], tmp_path, together=True)
    assert done.returncode != 0
    assert done.stderr.count("error[training-missing]") == 1
    assert "internal-error" not in done.stderr


def test_alone_it_is_no_process_of_others() -> None:
    from edgepack.passes.training import processes

    assert (processes.count(), processes.is_main()) == (1, True)
    assert processes.broadcast({"x": 1}) == {"x": 1}
    assert labels_of(network(0), drawn(3)).shape == (3,)
