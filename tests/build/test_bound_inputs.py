"""Builds of models with several inputs: whatever order they are named in, the bundle is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import load
from support.build_cases import Home, ask, build

NETS = '''
import torch
from torch import nn


class Attend(nn.Module):
    """Asymmetric in two inputs of one shape."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, query, key):
        return self.out(torch.relu(self.a(query)) - 2 * self.a(key))


class Rich(Attend):
    """Everything that cannot be fed by position; outputs of a dict of None and lists."""

    def forward(self, query, mask=None, *, key, extras: dict):
        hidden = torch.relu(self.a(query)) - 2 * self.a(key)
        logits = self.out(hidden + extras["bias"]) * extras["scale"]
        return {"logits": logits, "loss": None, "hidden_states": [hidden, (hidden + 1, None)]}
'''
SAMPLES = """
import numpy as np


def samples():
    generator = np.random.default_rng(3)
    for _ in range(110):
        yield {name: generator.normal(size=8).astype("float32") for name in ("key", "query")}
"""
MANIFEST = """
schema = 1
[model]
arch = "nets.py:Attend"
[[inputs]]
name = "key"
dtype = "float32"
shape = ["batch", 8]
[[inputs]]
name = "query"
dtype = "float32"
shape = ["batch", 8]
[calibration]
samples = "samples.npz"
"""


def arrays(count: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(len(shapes))
    return {
        name: generator.normal(size=(count, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, dict[str, Any]]:
    """A folder with the two networks, their weights and samples, `key` first."""
    import importlib.util

    import torch

    home = Home(tmp_path_factory.mktemp("bound"))
    for name, text in (("nets.py", NETS), ("samples.py", SAMPLES), ("edge.toml", MANIFEST)):
        Path(home / name).write_text(text)
    spec = importlib.util.spec_from_file_location("bound_nets", home / "nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    networks = {}
    for name in ("Attend", "Rich"):
        networks[name] = getattr(module, name)().eval()
        torch.save(networks[name].state_dict(), home / f"{name}.pt")
    np.savez(home / "samples.npz", **arrays(110, key=(8,), query=(8,)))
    rich = arrays(110, scale=(3,), key=(8,), bias=(16,), query=(8,))
    np.savez(home / "rich.npz", **rich)
    return home, networks


INPUTS = ["--input", "key:float32:batch,8", "--input", "query:float32:batch,8"]


@pytest.mark.parametrize("way", ["npz", "--input", "function", "manifest"])
def test_inputs_are_fed_by_name(
    nets: tuple[Home, dict[str, Any]], way: str, tmp_path: Path
) -> None:
    import torch

    home, networks = nets
    samples = home / "samples.py:samples" if way == "function" else home / "samples.npz"
    options = ["--calibration", samples, "--arch", home / "nets.py:Attend"]
    if way == "manifest":
        options = ["--manifest", home / "edge.toml"]
    if way in ("--input", "function"):
        options += INPUTS
    arguments = home.build("Attend.pt", *options, "--chain", "none", calibration="")
    answer = build(arguments, tmp_path / "x.edgepack")
    assert answer.document["verdict"] == "PASS"
    fed = arrays(5, query=(8,), key=(8,))
    (found,) = load(tmp_path / "x.edgepack")(**fed).values()
    with torch.no_grad():
        wanted = networks["Attend"](**{name: torch.from_numpy(a) for name, a in fed.items()})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_keywords_dicts_optional_inputs_and_nested_outputs(
    nets: tuple[Home, dict[str, Any]], tmp_path: Path
) -> None:
    import torch

    home, networks = nets
    samples = ["--calibration", home / "rich.npz", "--arch", home / "nets.py:Rich"]
    answer = build(home.build("Rich.pt", *samples, calibration=""), tmp_path / "x.edgepack")
    assert [t["name"] for t in answer.document["outputs"]] == [
        "logits", "hidden_states.0", "hidden_states.1.0",
    ]  # fmt: skip
    assert any("mask=None" in warning for warning in answer.document["warnings"])
    assert "mask=None" in answer.stderr
    fed = arrays(5, query=(8,), bias=(16,), key=(8,), scale=(3,))
    found = load(tmp_path / "x.edgepack")(**fed)
    tensors = {name: torch.from_numpy(array) for name, array in fed.items()}
    extras = {name: tensors.pop(name) for name in ("bias", "scale")}
    with torch.no_grad():
        wanted = networks["Rich"](**tensors, extras=extras)
    error = np.square(found["logits"] - wanted["logits"].numpy()).mean()
    assert error < 1e-2 * np.square(wanted["logits"].numpy()).mean()


def test_names_that_forward_lacks_are_refused(
    nets: tuple[Home, dict[str, Any]], tmp_path: Path
) -> None:
    home, _ = nets
    np.savez(tmp_path / "x.npz", **arrays(110, first=(8,), second=(8,)))
    options = ["--calibration", str(tmp_path / "x.npz"), "--arch", home / "nets.py:Attend"]
    answer = ask(*home.build("Attend.pt", *options, calibration=""))
    assert (answer.status, answer.code) == (2, "source-inputs-unmatched")
    assert "query, key" in answer.stderr


def test_a_hugging_face_folder_without_its_optional_inputs(home: Home, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, max_position_embeddings=32, hidden_size=16, num_attention_heads=2,
        num_hidden_layers=1, intermediate_size=32,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config).eval()
    network.save_pretrained(tmp_path / "bert")
    ids = np.random.default_rng(0).integers(1, 50, (110, 12))
    mask = np.ones_like(ids)
    np.savez(tmp_path / "ids.npz", attention_mask=mask, input_ids=ids)
    arguments = home.build(str(tmp_path / "bert"), "--chain", "none", calibration="")
    arguments += ["--calibration", str(tmp_path / "ids.npz")]
    answer = build(arguments, tmp_path / "x.edgepack")
    assert [t["name"] for t in answer.document["inputs"]] == ["input_ids", "attention_mask"]
    assert any("token_type_ids" in warning for warning in answer.document["warnings"])
    found = load(tmp_path / "x.edgepack")(attention_mask=mask[:3], input_ids=ids[:3])
    with torch.no_grad():
        wanted = network(torch.from_numpy(ids[:3]), torch.from_numpy(mask[:3])).logits
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-3, atol=1e-4)
    stated = ["--input", "input_ids:int64:batch,12"]
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    answer = build([*arguments, *stated], tmp_path / "y.edgepack")
    assert [t["name"] for t in answer.document["inputs"]] == ["input_ids"]
