"""What `factorize` refuses, and how it says it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.passes.factorize import FactorizeOptions, factorize
from support.module_nets import given, mlp, mobile, pictures, seeded


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 1},
        {"energy": -0.1},
        {"energy": math.nan},
        {"energy": "most"},
        {"energy": True},
        {"parameters": 1},
        {"parameters": "half"},
        {"snr_db": -3},
        {"snr_db": math.inf},
        {"energy": 0.9, "snr_db": 20},
        {"energy": 0.9, "parameters": 0.5},
        {"method": "pca"},
        {"method": 3},
        {"round_to": 0},
        {"round_to": 8.0},
        {"batch_size": 0},
        {"include": 3},
        {"exclude": [True]},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("factorize", options).read()
    assert caught.value.code == "factorize-option"
    assert caught.value.why
    assert caught.value.hint


def test_an_option_misspelt() -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("factorize", {"enregy": 0.9}).read()
    assert caught.value.code == "chain-option"
    assert "did you mean 'energy'?" in caught.value.why


def refused(
    tmp_path: Path, network: nn.Module, options: FactorizeOptions, **arrays: Any
) -> ChainError:
    with pytest.raises(ChainError) as caught:
        factorize(network, options, given(tmp_path, network, **arrays))
    assert caught.value.why
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("pattern", ["head", "inner.*", "6"])
def test_a_pattern_that_fits_nothing(tmp_path: Path, pattern: str) -> None:
    for options in (FactorizeOptions(include=(pattern,)), FactorizeOptions(exclude=(pattern,))):
        error = refused(tmp_path, seeded(mlp), options)
        assert error.code == "factorize-layers"
        assert repr(pattern) in error.what


def test_a_network_without_a_layer_for_it(tmp_path: Path) -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU()))
    error = refused(tmp_path, network, FactorizeOptions())
    assert error.code == "factorize-nothing"
    assert "groups" in error.why
    error = refused(tmp_path, nn.Flatten().eval(), FactorizeOptions())
    assert "no Linear and no convolution" in error.why
    error = refused(tmp_path, seeded(lambda: nn.Conv2d(3, 30, 3)), FactorizeOptions())
    assert "the whole network" in error.why


def test_a_budget_that_cannot_be_met(tmp_path: Path) -> None:
    error = refused(tmp_path, seeded(mobile), FactorizeOptions(parameters=0.05))
    assert error.code == "factorize-budget"
    assert "parameters=0." in error.hint


def test_activations_that_are_not_finite(tmp_path: Path) -> None:
    network = seeded(mlp)
    with torch.no_grad():
        network[1].weight[0, 0] = math.inf
    error = refused(tmp_path, network, FactorizeOptions(), x=pictures())
    assert error.code == "factorize-not-finite"
    assert "the layer 1 " in error.what
