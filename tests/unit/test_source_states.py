"""Which weights are taken from a checkpoint, and the account of what was left."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgepack.errors import SourceError
from edgepack.source import Source, load

NET = """\
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
"""
X = {"x": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}

State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()


RAW, EMA = dict(network(0).state_dict()), dict(network(1).state_dict())


def behind(prefix: str, state: State = RAW) -> State:
    return {prefix + name: value for name, value in state.items()}


def take(content: object, **options: Any) -> Source:
    torch.save(content, "m.pt")
    return load(Path("m.pt"), arch="net.py:make", **options)


def seed_of(source: Source) -> int:
    """Return the seed of the network that answers as the source does."""
    (answer,) = source.run(X)
    with torch.no_grad():
        wanted = [network(seed)(torch.from_numpy(X["x"])).numpy() for seed in (0, 1)]
    (seed,) = [seed for seed in (0, 1) if np.allclose(answer, wanted[seed], atol=1e-6)]
    return seed


def test_counters_and_random_states_beside_the_weights_are_left(folder: Path) -> None:
    entries = {"epoch": 3, "loss": torch.tensor(0.3), "rng": torch.get_rng_state()}
    source = take({**entries, "model": RAW})
    assert seed_of(source) == 0
    assert source.weights == "weights from 'model'; left: epoch, loss, rng"
    assert source.selection == {"key": "model", "prefix": "", "left": ["epoch", "loss", "rng"]}
    assert not source.warnings
    assert take({**RAW, "epoch": 3}).weights == "left: epoch"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict_ema"),
        ({"model": RAW, "ema": {"module": EMA, "updates": 10}}, "ema.module"),
        ({"params": RAW, "params_ema": EMA}, "params_ema"),
        ({"g": RAW, "g_ema": EMA}, "g_ema"),
        ({"model": RAW, "modelEMA": EMA}, "modelEMA"),
    ],
)
def test_averaged_weights_are_the_default_and_the_user_is_told(
    folder: Path, content: dict[str, Any], key: str
) -> None:
    source = take(content)
    assert seed_of(source) == 1
    assert f"weights from {key!r}" in source.weights
    (warning,) = source.warnings
    raw = next(iter(content))
    assert f"--weights {raw}" in warning
    other = take(content, weights=raw)
    assert seed_of(other) == 0
    assert not other.warnings
    assert other.digest != source.digest


@pytest.mark.parametrize("content", [{"ema": RAW}, {"params_ema": RAW}, [RAW], (RAW, 3)])
def test_the_only_weights_are_taken_whatever_their_key(folder: Path, content: object) -> None:
    assert seed_of(take(content)) == 0


def test_averaged_weights_that_do_not_fill_the_network_are_left(folder: Path) -> None:
    partial = {name: value for name, value in EMA.items() if "running" not in name}
    source = take({"model": RAW, "ema": partial})
    assert seed_of(source) == 0
    assert "left: ema" in source.weights


@pytest.mark.parametrize(
    ("state", "account"),
    [
        (behind("module."), "prefix 'module.' removed"),
        (behind("_orig_mod.module."), "prefix '_orig_mod.module.' removed"),
        (behind("module._orig_mod."), "prefix 'module.' removed; '_orig_mod' removed from names"),
        (
            {n.replace("0.", "0._orig_mod.", 1) if n[0] == "0" else n: v for n, v in RAW.items()},
            "'_orig_mod' removed from names",
        ),
        (
            {"n_averaged": torch.tensor(3), **behind("module.")},
            "prefix 'module.' removed; left: n_averaged (1 tensor)",
        ),
        (
            {**RAW, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
            "left: total_ops (1 tensor), 0 (1 tensor)",
        ),
    ],
)
def test_what_tools_add_to_names_is_removed(folder: Path, state: State, account: str) -> None:
    source = take(state)
    assert seed_of(source) == 0
    assert source.weights == account
    assert not source.warnings


def test_tensors_beside_a_common_prefix_are_left_with_a_warning(folder: Path) -> None:
    source = take({"state_dict": {**behind("model."), "criterion.weight": torch.ones(4)}})
    assert seed_of(source) == 0
    (warning,) = source.warnings
    assert "criterion (1 tensor)" in warning


def test_a_remedy_for_a_prefix_works_when_typed(folder: Path) -> None:
    content = {"state_dict": {**behind("student."), **behind("teacher.", EMA)}}
    with pytest.raises(SourceError) as caught:
        take(content)
    assert caught.value.code == "source-weights-ambiguous"
    assert caught.value.hint == "--strip-prefix student. or --strip-prefix teacher."
    source = take(content, strip_prefix="teacher.")
    assert seed_of(source) == 1
    assert "student (9 tensors)" in source.warnings[0]
    assert take(content, strip_prefix="student.").digest != source.digest
    with pytest.raises(SourceError) as caught:
        take(content, strip_prefix="teacher")
    assert caught.value.hint == "--strip-prefix teacher."
    with pytest.raises(SourceError) as caught:
        take(behind("module.backbone."))
    assert caught.value.hint == "--strip-prefix module.backbone."
    assert seed_of(take(behind("module.backbone."), strip_prefix="module.backbone.")) == 0


def test_a_layer_that_the_network_lacks_is_never_dropped(folder: Path) -> None:
    for prefix in ("", "module."):
        with pytest.raises(SourceError) as caught:
            take({**behind(prefix), f"{prefix}4.weight": torch.ones(3)})
        assert caught.value.code == "source-weights-mismatch"


def test_a_buffer_is_cast_where_no_value_changes(folder: Path) -> None:
    counter = "1.num_batches_tracked"
    assert seed_of(take({**RAW, counter: RAW[counter].float()})) == 0
    assert seed_of(take({**RAW, counter: torch.tensor([0.5])})) == 0
    Path("net.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('order', torch.arange(3))\n"
        "    def forward(self, x):\n        return x[:, self.order]\n\n\ndef make():\n"
        "    return Net()\n"
    )
    order = torch.tensor([2.0, 0.0, 1.0])
    source = take({"order": order})
    np.testing.assert_array_equal(source.run(X)[0], X["x"][:, [2, 0, 1]])
    assert "1 tensors from float32 to int64" in " ".join(source.notes)
    with pytest.raises(SourceError) as caught:
        take({"order": order + 0.5})
    assert caught.value.code == "source-weights-dtype"


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        {"model": RAW, "args": argparse.Namespace(lr=0.1)},
        {"best": np.float64(0.4), "net": RAW},
        {"epoch": -1, "model": network(0), "ema": None},
        {name: value.numpy() for name, value in RAW.items()},
        network(0),
    ],
    ids=["namespace", "scalar", "module in a dict", "arrays", "module"],
)
def test_the_remedies_for_a_pickle_work_when_typed(
    folder: Path, content: object, legacy: bool
) -> None:
    whole = isinstance(content, torch.nn.Module)
    torch.save(content, "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SourceError) as caught:
        load(Path("m.pt"), arch="net.py:make")
    assert caught.value.code == "source-pickled-module"
    lines = [line.strip() for line in str(caught.value.hint).splitlines() if line[0] == " "]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=folder)
    assert seed_of(load(Path("weights.pt"), arch="net.py:make")) == 0
    arch = None if whole else "net.py:make"
    assert seed_of(load(Path("m.pt"), arch=arch, trust_pickle=True)) == 0


def test_a_module_in_half_precision_inside_a_trusted_checkpoint(folder: Path) -> None:
    """As Ultralytics saves: its class beside the file, the moving average first, float16."""
    Path("parts.py").write_text(
        "import torch\n\nclass Head(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.out = torch.nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return self.out(x)\n"
    )
    script = (
        "import torch, parts; torch.manual_seed(0); m = parts.Head().half();"
        "torch.save({'epoch': -1, 'model': parts.Head().half(), 'ema': m}, 'm.pt');"
        "torch.save(m.float().state_dict(), 'ema.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)
    source = load(Path("m.pt"), trust_pickle=True)
    assert source.weights == "weights from 'ema'; left: epoch, model"
    assert any("--weights model" in warning for warning in source.warnings)
    assert any("float16 to float32" in note for note in source.notes)
    state = torch.load("ema.pt")
    wanted = X["x"] @ state["out.weight"].numpy().T + state["out.bias"].numpy()
    np.testing.assert_allclose(source.run(X)[0], wanted, atol=1e-6)
    other = load(Path("m.pt"), trust_pickle=True, weights="model")
    assert other.digest != source.digest


def test_a_head_with_an_export_mode_returns_its_answer_alone(folder: Path) -> None:
    """As a YOLO head: without its flag `export` it also returns what its training loss reads."""
    Path("yolo.py").write_text(
        "import torch\n\nclass Detect(torch.nn.Module):\n    export = False\n\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.out = torch.nn.Linear(4, 3)\n\n"
        "    def forward(self, x):\n        raw = [self.out(x), -x]\n"
        "        y = raw[0].sigmoid()\n"
        "        return y if self.export else (y, {'raw': raw})\n"
    )
    script = (
        "import torch, yolo; m = torch.nn.Sequential(yolo.Detect()).half();"
        "torch.save({'epoch': 3, 'model': None, 'ema': m, 'train_args': {'imgsz': 64}}, 'm.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)
    with pytest.raises(SourceError) as caught:
        load(Path("m.pt"))
    assert "torch.save(content['ema'].state_dict(), \"weights.pt\")" in caught.value.hint
    source = load(Path("m.pt"), trust_pickle=True)
    assert [output.shape for output in source.run(X)] == [(5, 3)]
    assert "Set the export mode of Detect (its flag `export`)." in source.notes


def test_a_trusted_pickle_of_a_package_that_is_absent_names_it(folder: Path) -> None:
    Path("absentee.py").write_text("class Net(__import__('torch').nn.Module):\n    pass\n")
    script = "import torch, absentee; torch.save({'model': absentee.Net()}, 'm.pt')"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)
    Path("absentee.py").unlink()
    with pytest.raises(SourceError) as caught:
        load(Path("m.pt"), trust_pickle=True)
    assert caught.value.code == "source-pickle-failed"
    assert "pip install absentee" in caught.value.hint


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_of_shards_is_a_checkpoint(folder: Path, suffix: str) -> None:
    names = sorted(RAW)
    for number, part in enumerate((names[:3], names[3:])):
        shard = {name: RAW[name] for name in part}
        if suffix == "bin":
            torch.save(shard, f"part-{number}.{suffix}")
        else:
            save_file(shard, f"part-{number}.{suffix}")
    table = {name: f"part-{int(name in names[3:])}.{suffix}" for name in names}
    index = Path(f"model.{suffix}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    source = load(index, arch="net.py:make")
    assert seed_of(source) == 0
    assert source.bytes == sum(path.stat().st_size for path in folder.glob(f"*.{suffix}"))
    with pytest.raises(SourceError) as caught:
        load(folder)
    assert str(index) in str(caught.value.hint)
