"""State dicts and their factories: unwrapped, loaded whole, and digested with their code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import edgepack.source
from edgepack.source import Source, load, recognise

NET = """\
import torch
from parts_of_net import make_head

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = torch.nn.Linear(4, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.head = make_head(width)

    def forward(self, x):
        y = self.norm(self.body(x)).relu()
        return {"logits": self.head(y), "features": [y, None]}

def build(width=8):
    return Net(width)
"""
PARTS = """\
import torch

def make_head(width):
    return torch.nn.Linear(width, 3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "parts_of_net.py").write_text(PARTS)
    return tmp_path


def weights(width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """A trained state dict of NET."""
    torch.manual_seed(seed)
    return {
        "body.weight": torch.randn(width, 4),
        "body.bias": torch.randn(width),
        "norm.weight": torch.rand(width) + 0.5,
        "norm.bias": torch.randn(width),
        "norm.running_mean": torch.randn(width),
        "norm.running_var": torch.rand(width) + 0.5,
        "norm.num_batches_tracked": torch.tensor(7),
        "head.weight": torch.randn(3, width),
        "head.bias": torch.randn(3),
    }


def expected(state: dict[str, torch.Tensor], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NET in plain numpy, float64."""
    w = {name: value.double().numpy() for name, value in state.items()}
    y = x @ w["body.weight"].T + w["body.bias"]
    y = (y - w["norm.running_mean"]) / np.sqrt(w["norm.running_var"] + 1e-5)
    y = np.maximum(y * w["norm.weight"] + w["norm.bias"], 0)
    return y @ w["head.weight"].T + w["head.bias"], y


def take(folder: Path, content: object, **options: Any) -> Source:
    """Save with torch.save and load."""
    torch.save(content, folder / "model.pt")
    return load(folder / "model.pt", arch="net.py:build", search=(folder,), **options)


X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def check(source: Source, state: dict[str, torch.Tensor]) -> None:
    """The source answers as numpy does."""
    answers = source.run({"x": X})
    for answer, reference in zip(answers, expected(state, X), strict=True):
        np.testing.assert_allclose(answer, reference, rtol=1e-4, atol=1e-5)
    assert not source.module.training


def test_a_state_dict_gives_the_network_that_was_trained(folder: Path) -> None:
    source = take(folder, weights())
    check(source, weights())
    assert source.kind == "state-dict"
    assert source.parameters == 8 * 4 + 8 + 8 + 8 + 3 * 8 + 3
    assert source.bytes == (folder / "model.pt").stat().st_size
    assert not source.trusted_pickle
    assert not source.warnings


def test_the_suffix_means_nothing(folder: Path) -> None:
    save_file(weights(), folder / "model.onnx")
    assert recognise(folder / "model.onnx") == "safetensors"
    check(load(folder / "model.onnx", arch="net:build", search=(folder,)), weights())


def test_the_layout_before_torch_1_6_is_taken(folder: Path) -> None:
    torch.save(weights(), folder / "old.pth", _use_new_zipfile_serialization=False)
    assert recognise(folder / "old.pth") == "checkpoint"
    check(load(folder / "old.pth", arch="net:build", search=(folder,)), weights())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_what_training_scripts_wrap_around_it_is_taken_off(folder: Path, key: str) -> None:
    wrapped = {f"module.{name}": value for name, value in weights().items()}
    source = take(folder, {"epoch": 3, "optimizer": {"lr": 0.1}, key: wrapped})
    check(source, weights())
    notes = " ".join(source.notes)
    assert f"'{key}'" in notes
    assert "epoch" in notes
    assert "'module.'" in notes


def test_a_counter_that_old_checkpoints_lack_is_not_missed(folder: Path) -> None:
    state = weights()
    del state["norm.num_batches_tracked"]
    check(take(folder, state), weights())


def test_half_precision_is_widened_with_a_note(folder: Path) -> None:
    half = {n: v.half() if v.is_floating_point() else v for n, v in weights().items()}
    source = take(folder, half)
    check(source, {n: v.float() for n, v in half.items()})
    assert "8 tensors from float16 to float32" in " ".join(source.notes)


def test_arguments_reach_the_factory(folder: Path) -> None:
    check(take(folder, weights(width=6), arch_args={"width": 6}), weights(width=6))


def test_a_train_that_returns_nothing(folder: Path) -> None:
    """Overridden to keep its norms as they are, and without the `return self` of torch's own."""
    (folder / "kept.py").write_text(
        "from net import Net\n\n\nclass Kept(Net):\n    def train(self, mode=True):\n"
        "        super().train(mode)\n        self.norm.eval()\n"
    )
    torch.save(weights(), folder / "model.pt")
    arguments = {"width": 8}
    source = load(folder / "model.pt", arch="kept:Kept", arch_args=arguments, search=(folder,))
    check(source, weights())


def test_a_file_is_a_factory_by_its_whole_path(folder: Path) -> None:
    torch.save(weights(), folder / "model.pt")
    arch = f"{folder / 'net.py'}:Net"
    check(load(folder / "model.pt", arch=arch, arch_args={"width": 8}), weights())


def test_shared_tensors_may_be_in_the_file_once(folder: Path) -> None:
    (folder / "tied.py").write_text(
        "import torch\n"
        "class Tied(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one = torch.nn.Linear(4, 4, bias=False)\n"
        "        self.two = torch.nn.Linear(4, 4, bias=False)\n"
        "        self.two.weight = self.one.weight\n"
        "    def forward(self, x): return self.two(self.one(x))\n"
    )
    matrix = torch.randn(4, 4)
    torch.save({"one.weight": matrix}, folder / "tied.pt")
    source = load(folder / "tied.pt", arch="tied:Tied", search=(folder,))
    np.testing.assert_allclose(
        source.run({"x": X})[0], X @ matrix.numpy().T @ matrix.numpy().T, rtol=1e-4, atol=1e-5
    )
    assert source.parameters == 16


def test_the_digest_is_stable_and_covers_weights_code_and_arguments(folder: Path) -> None:
    first = take(folder, weights()).digest
    assert take(folder, weights()).digest == first
    assert take(folder, weights(), arch_args={"width": 8}).digest != first
    assert take(folder, weights(seed=1)).digest != first
    (folder / "parts_of_net.py").write_text(PARTS + "\n# changed\n")
    assert take(folder, weights()).digest != first
    (folder / "parts_of_net.py").write_text(PARTS)
    assert take(folder, weights()).digest == first
    (folder / "net.py").write_text(NET.replace(".relu()", ".relu() * 2"))
    assert take(folder, weights()).digest != first


def test_a_changed_helper_is_run_not_only_digested(folder: Path) -> None:
    one = take(folder, weights()).run({"x": X})[0]
    (folder / "net.py").write_text(NET.replace(".relu()", ".relu() * 2"))
    two = take(folder, weights()).run({"x": X})[1]
    np.testing.assert_allclose(two, 2 * expected(weights(), X)[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(one[:, :1], two[:, :1])


def test_a_configuration_that_the_factory_reads_is_in_the_digest(folder: Path) -> None:
    (folder / "width.json").write_text("8")
    (folder / "read.py").write_text(
        "import json, pathlib, net\n"
        "def build():\n"
        "    file = pathlib.Path(__file__).parent / 'width.json'\n"
        "    return net.Net(json.loads(file.read_text()))\n"
    )
    torch.save(weights(), folder / "model.pt")
    first = load(folder / "model.pt", arch="read:build", search=(folder,)).digest
    (folder / "width.json").write_text("8 ")
    assert load(folder / "model.pt", arch="read:build", search=(folder,)).digest != first


def test_two_processes_give_one_digest(folder: Path) -> None:
    torch.save(weights(), folder / "model.pt")
    for name in "abc":
        (folder / f"{name}.json").write_text(name)
    (folder / "read.py").write_text(
        "import pathlib, net\n"
        "def build():\n"
        "    texts = [p.read_text() for p in pathlib.Path('.').glob('*.json')]\n"
        "    return net.Net(8)\n"
    )
    command = "import pathlib, edgepack.source as s; print(s.load(pathlib.Path('model.pt'), "
    command += "arch='read.py:build').digest)"
    package = str(Path(edgepack.source.__file__).parents[2])
    digests = {
        subprocess.run(
            [sys.executable, "-c", command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": package, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_the_import_path_and_the_random_state_are_put_back(folder: Path) -> None:
    path, state = list(sys.path), torch.random.get_rng_state()
    torch.save(weights(), folder / "model.pt")
    torch.random.set_rng_state(state)
    load(folder / "model.pt", arch="net:build", search=(folder,))
    assert sys.path == path
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_trusted_module_is_taken_with_a_warning(folder: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), folder / "whole.pt")
    source = load(folder / "whole.pt", trust_pickle=True)
    assert source.kind == "pickled-module"
    assert source.trusted_pickle
    assert "whole.pt" in source.warnings[0]
    assert source.run({"x": X})[0].shape == (5, 2)


def test_trust_that_is_not_needed_is_not_used(folder: Path) -> None:
    source = take(folder, weights(), trust_pickle=True)
    assert not source.trusted_pickle
    assert not source.warnings


def test_a_trusted_torchscript_archive_is_taken(folder: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()).eval()
    torch.jit.trace(net, torch.from_numpy(X)).save(str(folder / "model.pt"))
    assert recognise(folder / "model.pt") == "torchscript"
    source = load(folder / "model.pt", trust_pickle=True)
    assert source.kind == "torchscript"
    assert source.trusted_pickle
    np.testing.assert_allclose(
        source.run({"x": X})[0], net(torch.from_numpy(X)).detach().numpy(), rtol=1e-5
    )


def test_a_dict_of_outputs_is_exported_as_a_flat_tuple(folder: Path) -> None:
    source = take(folder, weights())
    program = torch.export.export(source.module, (torch.from_numpy(X),))
    assert len(program.graph_signature.user_outputs) == 2
    assert set(program.state_dict) == set(weights())


def test_a_file_is_recognised_from_the_bytes_that_were_opened_first(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    index = tmp_path / "weights.index.json"
    index.write_text('{"weight_map": {"w": "weights.safetensors"}}')
    opened: list[str] = []

    def note(event: str, values: tuple[object, ...]) -> None:
        # A hook cannot be removed, so it counts the files of this test alone.
        if event == "open" and str(values[0]) in (str(weights), str(index)):
            opened.append(str(values[0]))

    sys.addaudithook(note)
    assert recognise(weights) == "safetensors"
    assert recognise(index) == "sharded-checkpoint"
    assert opened == [str(weights), str(index)]
