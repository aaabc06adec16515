"""Single weights that become zero: how many, which, and that they stay."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from edgepack.passes.prune import PruneOptions, prune, replay
from support.module_nets import Residual, ask, given, mlp, mobile, pictures, replayed, seeded
from support.training_cases import same


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in network.named_parameters() if p.ndim > 1}


def test_the_smallest_of_all(tmp_path: Path) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    found = prune(copy.deepcopy(network), PruneOptions(unstructured=0.8), data)
    before = torch.cat([w.abs().flatten() for w in weights(network).values()])
    after = torch.cat([w.abs().flatten() for w in weights(found.model).values()])
    assert int((after == 0).sum()) == round(0.8 * len(before)) == found.details["zeros"]["zeros"]
    assert before[after == 0].max() <= before[after > 0].min()
    assert torch.equal(before[after > 0], after[after > 0])
    assert found.recipe == {}
    assert any("the file is no smaller" in note for note in found.notes)
    again = replayed(replay, copy.deepcopy(network), found, data)
    assert same(again, found.model)
    assert ask(again, pictures(2)).shape == (2, 5)
    # Biases and norms keep theirs.
    assert torch.equal(found.model.bn1.weight, network.bn1.weight)
    assert torch.equal(found.model.three.bias, network.three.bias)


def test_the_same_share_of_every_layer(tmp_path: Path) -> None:
    network = seeded(mobile)
    options = PruneOptions(unstructured=0.5, per_layer=True, exclude=("0", "12"))
    found = prune(copy.deepcopy(network), options, given(tmp_path, network))
    for total, zeros in found.details["zeros"]["layers"].values():
        assert zeros == round(total / 2)
    assert set(found.details["zeros"]["left"]) == {"0", "12"}
    assert torch.equal(found.model[0].weight, network[0].weight)


def test_two_of_four_along_the_input_channels(tmp_path: Path) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    found = prune(copy.deepcopy(network), PruneOptions(pattern="2:4"), data)
    for name in ("one", "three", "shortcut", "head"):
        was = getattr(network, name).weight.detach().movedim(1, -1).reshape(-1, 4).abs()
        now = getattr(found.model, name).weight.detach().movedim(1, -1).reshape(-1, 4).abs()
        assert torch.equal((now == 0).sum(1), torch.full((len(now),), 2))
        kept = was.sort(dim=1, descending=True).values[:, :2]
        assert torch.equal(now.sort(dim=1, descending=True).values[:, :2], kept)
    assert "3 input channels" in found.details["zeros"]["left"]["stem.0"]
    assert torch.equal(found.model.stem[0].weight, network.stem[0].weight)
    assert found.recipe == {}


def test_equal_weights_lose_exactly_as_many(tmp_path: Path) -> None:
    network = seeded(Residual)
    with torch.no_grad():
        for weight in weights(network).values():
            weight.fill_(0.5)
    found = prune(copy.deepcopy(network), PruneOptions(unstructured=0.25), given(tmp_path, network))
    total = sum(w.numel() for w in weights(network).values())
    assert found.details["zeros"]["zeros"] == round(total / 4)


def test_tied_weights_count_once(tmp_path: Path) -> None:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 432), nn.Linear(432, 432)))
    network[2].weight = network[1].weight
    found = prune(network, PruneOptions(unstructured=0.5), given(tmp_path, network))
    assert found.details["zeros"]["weights"] == 432 * 432
    assert found.model[2].weight is found.model[1].weight
    assert "an earlier layer" in found.details["zeros"]["left"]["2"]


@pytest.mark.parametrize("zeros", [{"unstructured": 0.5}, {"pattern": "2:4"}], ids=str)
def test_channels_first_then_zeros(tmp_path: Path, zeros: dict[str, object]) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    options = PruneOptions(structured=0.4, **zeros)  # type: ignore[arg-type]
    found = prune(copy.deepcopy(network), options, data)
    was, now = found.details["structured"]["parameters"]
    assert now <= 0.6 * was
    share = found.details["zeros"]["zeros"] / found.details["zeros"]["weights"]
    assert share == pytest.approx(0.5, abs=0.02)
    assert same(replayed(replay, copy.deepcopy(network), found, data), found.model)
    assert np.isfinite(ask(found.model, pictures(2)).numpy()).all()


@pytest.mark.parametrize("options", [{"unstructured": 0.5}, {"pattern": "2:4"}], ids=str)
def test_weights_that_a_hook_computes_anew_stay(options: dict[str, Any], tmp_path: Path) -> None:
    """Zeros in them would be gone with the next call."""
    network = seeded(mlp)
    nn.utils.spectral_norm(network[1])
    torch.nn.utils.prune.l1_unstructured(network[3], "weight", 0.2)
    data = given(tmp_path, network.eval())
    found = prune(network, PruneOptions(**options), data)
    zeros = found.details["zeros"]
    assert list(zeros["layers"]) == ["5"]
    assert set(zeros["left"].values()) == {"its weights are computed from others"}
    ask(found.model, pictures(2))
    for name, (_, count) in zeros["layers"].items():
        assert int((found.model.get_submodule(name).weight == 0).sum()) == count
