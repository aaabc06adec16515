"""Learning rate and momentum by the step, against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch

from edgepack.passes.training.options import TrainingOptions
from edgepack.passes.training.schedule import compute_learning_rate, compute_momentum


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
def test_onecycle_is_torch_s(steps: int, warmup: float) -> None:
    options = TrainingOptions(lr=0.4, warmup=warmup, schedule="onecycle")
    if warmup * steps <= 1:  # torch divides by zero there
        assert 0 < compute_learning_rate(options, 0, steps) <= 0.4
        return
    theirs = optimizer(0.4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=0.4, total_steps=steps, pct_start=warmup
    )
    for step in range(steps):
        group = theirs.param_groups[0]
        assert compute_learning_rate(options, step, steps) == pytest.approx(group["lr"], rel=1e-6)
        assert compute_momentum(options, step, steps) == pytest.approx(group["betas"][0], rel=1e-6)
        theirs.step()
        schedule.step() if step < steps - 1 else None


def test_cosine_is_torch_s_after_the_rise() -> None:
    options = TrainingOptions(lr=0.2, warmup=0.2, schedule="cosine")
    found = [compute_learning_rate(options, step, 50) for step in range(50)]
    assert found[:10] == pytest.approx([0.02 * (i + 1) for i in range(10)])
    theirs = optimizer(0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=40)
    for step in range(10, 50):
        assert found[step] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6)
        theirs.step()
        schedule.step()


def test_constant_rises_and_stays() -> None:
    options = TrainingOptions(lr=1.0, warmup=0.5, schedule="constant")
    assert [compute_learning_rate(options, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert compute_momentum(options, 0, 4) is None


def test_without_a_rate_the_optimizer_s_default() -> None:
    assert TrainingOptions(optimizer="sgd").peak == 0.05
    assert (TrainingOptions().peak, TrainingOptions().decay) == (2e-3, 1e-2)
    assert TrainingOptions(weight_decay=0).decay == 0
