"""What training for int8 and equalization refuse, and how they say it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.passes.distill import DistillOptions, distill
from edgepack.passes.quantize import QuantizeOptions, quantize
from support.quantize_nets import Arrays, Steps, images, residual
from support.training_cases import context, drawn, network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "options",
    [
        {"aware": "int8"},
        {"aware": 1},
        {"aware": True, "student": "nets.py:small"},
        {"aware": True, "precision": "bf16"},
        {"aware": True, "precision": "fp16"},
    ],
    ids=str,
)
def test_options_of_distill(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as caught:
        passes.Step("distill", options).read()
    assert caught.value.code == "distill-option"
    assert caught.value.why
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("distill:aware=true", "no quantize follows"),
        ("distill:aware=true,half", "no quantize follows"),
        ("distill:aware=true,distill,quantize", "distill would undo it"),
        ("distill:aware=true,prune:structured=0.5,quantize", "prune would undo it"),
        ("distill:aware=true,distill:aware=true,factorize,quantize", "factorize would undo it"),
    ],
)
def test_chains_in_which_it_is_in_vain(text: str, reason: str) -> None:
    with pytest.raises(ChainError) as caught:
        passes.check_chain(passes.parse_chain(text))
    assert caught.value.code == "chain-conflict"
    assert reason in caught.value.why
    assert "quantize" in caught.value.hint


def test_a_network_without_layers(tmp_path: Path) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.factor)[:, :3]

    given = replace(
        context(tmp_path, network(), {"x": drawn(64)}), later={"quantize": QuantizeOptions()}
    )
    with pytest.raises(ChainError) as caught:
        distill(Scale(), DistillOptions(aware=True, epochs=1), given)
    assert caught.value.code == "distill-aware"
    assert "no convolution or linear layer" in caught.value.why


def test_a_network_of_convolutions_for_the_mode_that_leaves_them(tmp_path: Path) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv1d(6, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.only(x[..., None])[..., 0]

    options = QuantizeOptions(mode="dynamic")
    given = replace(context(tmp_path, network(), {"x": drawn(64)}), later={"quantize": options})
    with pytest.raises(ChainError) as caught:
        distill(Convolutions(), DistillOptions(aware=True, epochs=1), given)
    assert caught.value.code == "distill-aware"
    assert "only: onnxruntime's dynamic int8 convolution" in caught.value.why


@pytest.mark.parametrize(
    "options",
    [
        {"equalize": "smoth"},
        {"equalize": True},
        {"equalize": "smooth", "alpha": 1.1},
        {"equalize": "smooth", "alpha": -0.1},
        {"equalize": "smooth", "alpha": "half"},
        {"equalize": "smooth", "alpha": True},
        {"equalize": "both", "mode": "dynamic"},
        {"equalize": "cross-layer", "mode": "weights"},
    ],
    ids=str,
)
def test_options_of_equalization(options: dict[str, Any]) -> None:
    with pytest.raises(ChainError) as caught:
        QuantizeOptions(**options)
    assert caught.value.code == "quantize-option"
    assert caught.value.why
    assert caught.value.hint


@pytest.mark.parametrize("values", [images(4) * np.nan, images(0)], ids=["nan", "none"])
def test_samples_that_tell_nothing_are_refused_as_without_it(values: np.ndarray) -> None:
    codes = []
    for kind in ("none", "both"):
        with pytest.raises(ChainError) as caught:
            quantize(residual(), Arrays(x=values), QuantizeOptions(equalize=kind), Steps())
        codes.append(caught.value.code)
    assert codes[0] == codes[1]
    assert codes[0].startswith("quantize-calibration-")


def test_layers_that_do_not_fit_without_the_others(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)).eval()
    given = replace(
        context(tmp_path, network, {"x": drawn(64)}), later={"quantize": QuantizeOptions()}
    )
    with pytest.raises(ChainError) as caught:
        distill(network, DistillOptions(aware=True, epochs=1, drop=0.4), given)
    assert caught.value.code == "distill-student"
    assert "shapes cannot be multiplied" in caught.value.why
