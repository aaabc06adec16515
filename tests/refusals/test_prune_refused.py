"""What `prune` refuses, and how it says it."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack import passes
from edgepack.errors import ChainError, EdgepackError, HostError
from edgepack.passes.prune import PruneOptions, prune
from support.module_nets import given, mlp, mobile, pictures, seeded


@pytest.mark.parametrize(
    "options",
    [
        {"structured": 1},
        {"structured": -0.1},
        {"structured": math.nan},
        {"structured": "half"},
        {"structured": True},
        {"structured": "0.5:8"},
        {"unstructured": 1},
        {"unstructured": "most"},
        {"pattern": "4:8"},
        {"pattern": 24},
        {"pattern": "2:4", "unstructured": 0.5},
        {"of": "latency"},
        {"importance": "random"},
        {"per_layer": 1},
        {"round_to": 0},
        {"round_to": 2.5},
        {"samples": 0},
        {"batch_size": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"include": 3},
        {"exclude": [True]},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("prune", options).read()
    assert caught.value.code == "prune-option"
    assert caught.value.why
    assert caught.value.hint


def test_an_option_misspelt() -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("prune", {"structure": 0.5}).read()
    assert caught.value.code == "chain-option"
    assert "did you mean 'structured'?" in caught.value.why


@pytest.mark.parametrize("text", ["prune:2:4", "prune:pattern=2:+4", "prune:structured"])
def test_options_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ChainError) as caught:
        passes.parse_chain(text)
    assert caught.value.code == "chain-option"


def refused(
    tmp_path: Path, network: nn.Module, options: PruneOptions, **arrays: Any
) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        prune(network, options, given(tmp_path, network, **arrays))
    assert caught.value.why
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("zeros", [{}, {"unstructured": 0.5}], ids=str)
def test_a_pattern_that_fits_nothing(tmp_path: Path, zeros: dict[str, Any]) -> None:
    error = refused(tmp_path, seeded(mlp), PruneOptions(exclude=("head",), **zeros))
    assert error.code == "prune-layers"
    assert "'head'" in error.what


def test_a_network_without_channels_that_could_go(tmp_path: Path) -> None:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 5)))
    error = refused(tmp_path, network, PruneOptions())
    assert error.code == "prune-nothing"
    assert "output" in error.why
    error = refused(tmp_path, seeded(mlp), PruneOptions(round_to=64))
    assert error.code == "prune-nothing"
    assert "no smaller multiple of 64" in error.why


def test_a_network_without_weights(tmp_path: Path) -> None:
    for options in (PruneOptions(), PruneOptions(unstructured=0.5), PruneOptions(pattern="2:4")):
        error = refused(tmp_path, nn.Flatten().eval(), options)
        assert error.code in ("prune-nothing", "prune-graph")


def test_a_pattern_without_a_layer_of_fours(tmp_path: Path) -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)))
    error = refused(tmp_path, network, PruneOptions(pattern="2:4"))
    assert error.code == "prune-nothing"
    assert "not a multiple of 4" in error.why


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_budget_that_cannot_be_met(tmp_path: Path, of: str) -> None:
    error = refused(tmp_path, seeded(mobile), PruneOptions(structured=0.95, of=of))
    assert error.code == "prune-budget"
    assert "structured=0." in error.hint
    # What it says can be done can be done.
    share = float(error.hint.partition("structured=")[2].split()[0])
    network = seeded(mobile)
    assert prune(network, PruneOptions(structured=share, of=of), given(tmp_path, network)).changed


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    arrays = {"x": pictures(8), "labels": np.full(8, 7)}
    error = refused(tmp_path, seeded(mlp), PruneOptions(importance="taylor"), **arrays)
    assert error.code == "prune-labels"


class Untraceable(nn.Module):
    """An answer that no gradient leads back from."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(432, 32), nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            return self.two(self.one(x.flatten(1)))


def test_a_network_that_cannot_be_traced(tmp_path: Path) -> None:
    error = refused(tmp_path, seeded(Untraceable), PruneOptions())
    assert error.code in ("prune-graph", "prune-nothing")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    error = refused(tmp_path, seeded(mlp), PruneOptions())
    assert isinstance(error, HostError)
    assert error.code == "package-missing"
    assert ".[prune]" in error.hint
    # Zeros need no graph.
    network = seeded(mlp)
    data = replace(given(tmp_path, network), training=None)
    assert prune(network, PruneOptions(unstructured=0.5), data).changed
