"""Whether two answers are the same up to rounding, and what would hide that they are not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgepack.errors import ChainError
from edgepack.passes.network import are_outputs_equal
from edgepack.passes.prune import PruneOptions, prune
from support.module_nets import given, seeded


@pytest.mark.parametrize("hidden", [-math.inf, math.inf, math.nan, -1e9, -3e38], ids=str)
def test_a_masked_score_does_not_hide_the_others(hidden: float) -> None:
    one = torch.tensor([1.0, -2.0, hidden])
    assert are_outputs_equal(one, one.clone(), 0.0)
    assert are_outputs_equal(one, one + torch.tensor([1e-5, 0.0, 0.0]), 1e-4)
    assert not are_outputs_equal(one, one + torch.tensor([1e-2, 0.0, 0.0]), 1e-4)
    assert not are_outputs_equal(one, torch.tensor([1.0, -2.0, 3.0]), 1e-4)


def test_shapes_and_nothing_at_all() -> None:
    assert are_outputs_equal(torch.ones(0), torch.ones(0), 0.0)
    assert not are_outputs_equal(torch.ones(2), torch.ones(2, 1), 1.0)
    assert are_outputs_equal(torch.tensor([math.inf]), torch.tensor([math.inf]), 0.0)
    assert not are_outputs_equal(torch.tensor([math.inf]), torch.tensor([-math.inf]), 1.0)


class Mean(nn.Module):
    """The mean over channels is read beside them: none can go. One class is masked."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, 0.0, mask]))

    def forward(self, x: Any) -> Any:
        x = F.relu(self.one(x))
        return self.two((x / (x.mean(1, keepdim=True) + 0.1)).mean((2, 3))) + self.mask


@pytest.mark.parametrize("mask", [0.0, -1e9, -math.inf], ids=str)
def test_channels_that_are_read_elsewhere_stay_whatever_is_masked(
    mask: float, tmp_path: Path
) -> None:
    network = seeded(lambda: Mean(mask))
    with pytest.raises(ChainError, match="read by parts of the network other than its layers"):
        prune(network, PruneOptions(structured=0.2), given(tmp_path, network))


class Root(nn.Module):
    """A variance that is a parameter: no square root of it where it is stirred below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)
        self.variance = nn.Parameter(torch.full((32, 1, 1), 1e-8))

    def forward(self, x: Any) -> Any:
        x = F.relu(self.one(x)) / (1 + self.variance.sqrt().sum())
        return self.two((x / (x.mean(1, keepdim=True) + 0.1)).mean((2, 3)))


def test_what_cannot_be_tried_out_stays(tmp_path: Path) -> None:
    network = seeded(Root)
    with pytest.raises(ChainError, match="cannot be tested"):
        prune(network, PruneOptions(structured=0.2), given(tmp_path, network))
