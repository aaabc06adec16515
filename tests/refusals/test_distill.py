"""What `distill` and its training refuse, and how they say it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack import passes
from edgepack.errors import ChainError, EdgepackError, HostError
from edgepack.passes.distill import DistillOptions, distill
from edgepack.runtime.tensor import Tensor
from support.build_cases import Home, ask, images
from support.training_cases import context, drawn, network


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": True},
        {"epochs": "many"},
        {"batch_size": 0},
        {"batch_size": 10, "accumulate": 3},
        {"lr": -1},
        {"lr": math.nan},
        {"lr": math.inf},
        {"momentum": 1},
        {"weight_decay": -2},
        {"optimizer": "adam"},
        {"schedule": "one-cycle"},
        {"precision": "int8"},
        {"stop": "early"},
        {"stop": "plateau", "holdout": 0},
        {"holdout": 0.9},
        {"warmup": 1},
        {"clip": -1},
        {"patience": 0},
        {"seed": -1},
        {"keep_zeros": 1},
        {"gradient_checkpointing": "yes"},
        {"augment": 3},
        {"checkpoint_steps": 0},
        {"temperature": 0},
        {"alpha": 1.1},
        {"cosine": -1},
        {"drop": 1},
        {"drop": 0.5, "layers": "0,1"},
        {"student": "a:b", "drop": 0.5},
        {"student": 3},
        {"student_args": {"wide": 3}},
        {"student": "a:b", "student_args": "wide=3"},
        {"layers": "2,0"},
        {"layers": "0,0"},
        {"layers": "0,x"},
        {"layers": [0.5]},
        {"layers": [-1]},
        {"features": 1},
        {"feature_weight": "much"},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("distill", options).read()
    assert caught.value.code == "distill-option"
    assert caught.value.why
    assert caught.value.hint


def test_an_option_misspelt() -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("distill", {"temprature": 3}).read()
    assert caught.value.code == "chain-option"
    assert "did you mean 'temperature'?" in caught.value.why


FAST = DistillOptions(epochs=1, batch_size=16)


def refused(
    tmp_path: Path, options: DistillOptions = FAST, student: nn.Module | None = None, **more: Any
) -> ChainError:
    arrays = more.pop("arrays", {"x": drawn(64)})
    data = context(tmp_path, more.pop("teacher", network(0)), arrays, **more)
    with pytest.raises(ChainError) as caught:
        distill(student or network(1), options, data)
    assert caught.value.why
    assert caught.value.hint
    return caught.value


def labelled(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": drawn(64), "labels": labels}


@pytest.mark.parametrize(
    "labels",
    [
        np.full(64, 3),  # there are three classes
        np.zeros((64, 2), np.int64),
        np.zeros(64, np.float32),
    ],
    ids=["class", "positions", "floats"],
)
def test_labels_that_do_not_fit(tmp_path: Path, labels: np.ndarray) -> None:
    assert refused(tmp_path, arrays=labelled(labels)).code == "distill-labels"


def test_labels_that_do_not_fit_do_not_matter_to_alpha_1(tmp_path: Path) -> None:
    data = context(tmp_path, network(0), labelled(np.full(64, 3)))
    assert distill(network(1), DistillOptions(epochs=1, alpha=1), data).changed


def test_values_with_labels_of_classes(tmp_path: Path) -> None:
    outputs = (Tensor("y", "float32", ("batch", 3)),)
    error = refused(tmp_path, arrays=labelled(np.zeros(64, np.int64)), outputs=outputs)
    assert error.code == "distill-labels"


def test_alpha_0_without_labels(tmp_path: Path) -> None:
    error = refused(tmp_path, DistillOptions(epochs=1, alpha=0))
    assert error.code == "distill-labels"
    few = np.full(64, -1)
    few[:10] = 1
    error = refused(tmp_path / "few", DistillOptions(epochs=1, alpha=0), arrays=labelled(few))
    assert "54 of 64" in error.why


def test_a_network_with_nothing_to_learn(tmp_path: Path) -> None:
    class Choice(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1)

    outputs = (Tensor("y", "int64", ("batch",)),)
    error = refused(
        tmp_path, student=Choice(6, 3).eval(), teacher=Choice(6, 3).eval(), outputs=outputs
    )
    assert error.code == "distill-nothing"


def test_a_network_without_trained_parameters(tmp_path: Path) -> None:
    assert refused(tmp_path, student=network(1).requires_grad_(False)).code == "training-nothing"


def test_an_output_without_samples(tmp_path: Path) -> None:
    class Mean(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).mean(0)

    outputs = (Tensor("y", "float32", (3,)),)
    error = refused(tmp_path, student=Mean(6, 3).eval(), teacher=Mean(6, 3).eval(), outputs=outputs)
    assert error.code == "distill-outputs"


@pytest.mark.parametrize("layers", ["0,9", "0,1"])
def test_layers_that_are_not_there(tmp_path: Path, layers: str) -> None:
    stack = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), nn.Linear(6, 3)).eval()
    error = refused(tmp_path, DistillOptions(layers=layers), student=stack)
    assert error.code == "distill-layers"


def test_layers_of_a_network_without_a_list(tmp_path: Path) -> None:
    assert refused(tmp_path, DistillOptions(drop=0.5)).code == "distill-layers"


def test_gates_that_end_nothing(tmp_path: Path) -> None:
    options = DistillOptions(epochs=1, stop="gate", holdout=0.2)
    assert refused(tmp_path, options, gates={"snr_db": 10}).code == "distill-no-gate"


def test_fp16_on_a_cpu(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU here")
    error = refused(tmp_path, DistillOptions(epochs=1, precision="fp16"))
    assert error.code == "training-precision"


def test_without_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(HostError) as caught:
        distill(network(1), FAST, context(tmp_path, network(0), {"x": drawn(64)}))
    assert caught.value.code == "package-missing"
    assert ".[training]" in caught.value.hint


def test_no_gradient_checkpointing(tmp_path: Path) -> None:
    error = refused(tmp_path, DistillOptions(epochs=1, gradient_checkpointing=True))
    assert error.code == "training-no-checkpointing"


def test_too_few_samples(tmp_path: Path) -> None:
    options = DistillOptions(epochs=1, batch_size=8, accumulate=8)
    assert refused(tmp_path, options, arrays={"x": drawn(5)}).code == "training-too-few"


def test_a_forward_that_fails_in_training_only(tmp_path: Path) -> None:
    class Touchy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("not while I learn")
            return super().forward(x)

    error = refused(tmp_path, student=Touchy(6, 3).eval())
    assert error.code == "training-failed"
    assert "not while I learn" in error.why


def test_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of a few kilobytes stands where the training works."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    data = context(tmp_path, network(0), {"x": drawn(4000)})
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(data.work)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(EdgepackError) as caught:
            distill(network(1), FAST, data)
    finally:
        subprocess.run(["umount", str(data.work)], check=True)
    assert caught.value.code == "disk-full"


# The command


def test_a_source_without_a_module(home: Home) -> None:
    answer = ask(*home.build("tiny.onnx", "--chain", "distill", "--training",
                             home / "calibration.npz"))  # fmt: skip
    assert (answer.status, answer.code) == (2, "chain-needs-module")


@pytest.mark.parametrize(
    ("chained", "code"),
    [
        ("quantize,distill", "chain-order"),
        ("distill:epochs=0", "distill-option"),
        ("distill:epoch=2", "chain-option"),
        ("distill", "training-missing"),
        ("distill:student=nets.py:tinny", "source-arch-missing"),
        ("distill:student=netz.py:tiny", "source-arch-import"),
        ("distill:augment=nets.py:noise", "source-arch-missing"),
    ],
)
def test_the_chain(torch_home: Home, chained: str, code: str, monkeypatch) -> None:
    monkeypatch.chdir(torch_home.folder)
    training = [] if code == "training-missing" else ["--training", torch_home / "train.npz"]
    if training:
        np.savez(torch_home / "train.npz", image=images(64, 9))
    options = ["--arch", f"{torch_home / 'nets.py'}:tiny", "--input", "image:float32:batch,1,16,16"]
    answer = ask(*torch_home.build("tiny.pt", "--chain", chained, *training, *options))
    assert (answer.status, answer.code) == (2, code)


def test_samples_that_train_and_judge(torch_home: Home) -> None:
    options = ["--arch", f"{torch_home / 'nets.py'}:tiny", "--chain", "distill",
               "--training", torch_home / "evaluation.npz",
               "--evaluation", torch_home / "evaluation.npz"]  # fmt: skip
    answer = ask(*torch_home.build("tiny.pt", *options))
    assert (answer.status, answer.code) == (2, "samples-training-judges")
    assert "40 of 40 evaluation samples" in answer.stderr


def test_training_samples_that_calibrate_and_so_judge(torch_home: Home) -> None:
    options = ["--arch", f"{torch_home / 'nets.py'}:tiny", "--chain", "distill,quantize",
               "--training", torch_home / "calibration.npz"]  # fmt: skip
    answer = ask(*torch_home.build("tiny.pt", *options))
    assert (answer.status, answer.code) == (2, "samples-training-judges")
    assert "without evaluation samples" in answer.stderr


@pytest.mark.parametrize("stop", ["plateau", "gate"])
def test_nothing_is_held_out_that_could_end_the_training(tmp_path: Path, stop: str) -> None:
    options = DistillOptions(stop=stop, holdout=0.001)
    error = refused(tmp_path, options, gates={"agreement": 0.9})
    assert error.code == "distill-none-held-out"
    assert "holdout=0." in error.hint
