"""The training loop: what it learns, that it goes on where it was, that it ends when it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.errors import ChainError
from edgepack.passes.distill import DistillOptions, distill
from edgepack.passes.module import ModuleContext, ModuleResult
from edgepack.passes.training import loop
from edgepack.runtime.tensor import Tensor
from support.training_cases import context, drawn, labels_of, network, same

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = DistillOptions(epochs=4, batch_size=32, lr=0.02, checkpoint_steps=3)


def train(
    folder: Path, options: DistillOptions, student: nn.Module | None = None, count: int = 320
) -> ModuleResult:
    return distill(student or network(1), options, given(folder, count))


def given(folder: Path, count: int = 320, **more: Any) -> ModuleContext:
    teacher = network(0)
    x = drawn(count)
    return context(folder, teacher, {"x": x, "labels": labels_of(teacher, x)}, **more)


def test_it_learns(tmp_path: Path) -> None:
    found = train(tmp_path, replace(FAST, epochs=20, holdout=0.2))
    scores = found.details["scores"]
    assert len(scores) == 20
    assert scores[-1] > 0.85 > scores[0] + 0.1
    assert found.details["steps"] == 20 * 8
    assert not found.model.training
    assert all(parameter.grad is None for parameter in found.model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, optimizer: str, schedule: str) -> None:
    options = replace(FAST, epochs=2, optimizer=optimizer, schedule=schedule)
    first = train(tmp_path / "a", options, network(1, dropout=0.3)).model
    torch.rand(3)  # what the process drew before does not matter
    second = train(tmp_path / "b", options, network(1, dropout=0.3)).model
    assert same(first, second)
    other = train(tmp_path / "c", replace(options, seed=1), network(1, dropout=0.3)).model
    assert not same(first, other)


def test_the_process_s_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(tmp_path, replace(FAST, epochs=1))
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulating_gives_the_same_gradient(tmp_path: Path) -> None:
    options = replace(FAST, holdout=0)
    whole = train(tmp_path / "a", options).model.state_dict()
    parts = train(tmp_path / "b", replace(options, accumulate=8)).model.state_dict()
    for name in whole:
        assert torch.allclose(whole[name], parts[name], atol=1e-5), name


CHECKPOINTS = {0, *range(3, 31, 3), 10, 20, 30}


class Killed(BaseException):
    """Not an Exception, as a signal is not."""


@pytest.mark.parametrize("at", [1, 4, 11, 18, 30])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_goes_on_with_the_same_bits(
    tmp_path: Path, at: int, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are 10 an epoch, checkpoints after every third step and every epoch."""
    options = replace(FAST, epochs=3, optimizer=optimizer, stop="plateau", patience=9, holdout=0.05)
    whole = train(tmp_path / "whole", options, network(1, dropout=0.2))
    killed = given(tmp_path / "killed")
    step, made = loop.Loop._run_step, 0

    def counted(self: Any, *args: Any) -> Any:
        nonlocal made
        made += 1
        if made == at:
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(loop.Loop, "_run_step", counted)
    with pytest.raises(Killed):
        distill(network(1, dropout=0.2), options, killed)
    monkeypatch.setattr(loop.Loop, "_run_step", step)
    again = distill(network(1, dropout=0.2), options, killed)
    assert same(again.model, whole.model)
    assert again.details["scores"] == whole.details["scores"]
    # The step that was being made was not finished: the last checkpoint before it.
    assert again.details["resumed_at"] == max(s for s in CHECKPOINTS if s < at)


def test_zeros_stay_zero(tmp_path: Path) -> None:
    pruned = network(1)
    torch.manual_seed(0)
    with torch.no_grad():
        pruned[0].weight[torch.rand_like(pruned[0].weight) < 0.5] = 0
        pruned[3].weight[0, 0] = 0  # one alone is no pruning
    zeros = pruned[0].weight == 0
    found = train(tmp_path / "a", FAST, pruned)
    assert torch.equal(found.model[0].weight == 0, zeros)
    assert found.model[3].weight[0, 0] != 0
    assert found.details["pruned_tensors"] == 1
    assert "The zeros of 1 pruned tensors stayed zero." in found.notes
    free = train(tmp_path / "b", replace(FAST, keep_zeros=False), found.model).model
    assert (free[0].weight[zeros] != 0).float().mean() > 0.9


def test_clipping_bounds_a_step(tmp_path: Path) -> None:
    """With plain gradient descent the step is the gradient, times the rate."""
    options = replace(
        FAST, epochs=1, batch_size=320, holdout=0, optimizer="sgd", momentum=0, lr=1.0,
        weight_decay=0, schedule="constant", warmup=0, clip=0.001,
    )  # fmt: skip
    before = network(1).state_dict()
    after = train(tmp_path, options).model.state_dict()
    moved = sum(float((after[n] - before[n]).square().sum()) for n in before) ** 0.5
    assert moved == pytest.approx(0.001, rel=1e-2)


def test_a_lost_loss_ends_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    line = nn.Linear(6, 3).eval()
    values = (Tensor("y", "float32", ("batch", 3), "values"),)
    data = context(tmp_path, network(0), {"x": drawn(320)}, outputs=values)
    options = replace(FAST, lr=10, clip=0, optimizer="sgd", momentum=0.9, epochs=30)
    with pytest.raises(ChainError) as caught:
        distill(line, options, data)
    assert caught.value.code == "training-diverged"
    assert "10" in caught.value.hint


class InHalf(nn.Module):
    """Float16 weights between float32 inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.half()).float()


def test_float16_weights_are_named_where_they_do_not_train(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = (Tensor("y", "float32", ("batch", 3), "values"),)
    data = context(tmp_path, network(0), {"x": drawn(320)}, outputs=values)
    with pytest.raises(ChainError) as caught:
        distill(InHalf().eval(), replace(FAST, epochs=30), data)
    assert caught.value.code == "training-diverged"
    assert "float32" in caught.value.hint


def test_a_plateau_ends_it_with_the_best_weights(tmp_path: Path) -> None:
    options = replace(
        FAST, epochs=30, stop="plateau", patience=2, holdout=0.3, schedule="constant", lr=0.05
    )
    found = train(tmp_path, options)
    scores, kept = found.details["scores"], found.details["kept_epoch"]
    assert len(scores) < 30
    assert len(scores) - kept == 2
    assert scores[kept - 1] == max(scores)
    assert "stop=plateau" in found.notes[2]
    data = given(tmp_path / "other")
    x = torch.from_numpy(drawn(320))
    with torch.no_grad():
        agreement = (found.model(x).argmax(1) == data.original(x).argmax(1)).float().mean()
    assert agreement > 0.8


def test_the_gate_ends_it(tmp_path: Path) -> None:
    options = replace(FAST, epochs=40, stop="gate", holdout=0.2)
    found = distill(network(1), options, given(tmp_path, gates={"agreement": 0.8}))
    scores = found.details["scores"]
    assert len(scores) < 40
    assert scores[-1] >= 0.8 > max(scores[:-1])


def test_bfloat16(tmp_path: Path) -> None:
    found = train(tmp_path, replace(FAST, epochs=20, holdout=0.2, precision="bf16"))
    assert found.details["precision"] == "bf16"
    assert found.details["scores"][-1] > 0.85
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert found.model(torch.zeros(1, 6)).dtype == torch.float32
    assert "autocast" not in repr(found.model.forward)


def test_one_process_may_train_in_two_precisions(tmp_path: Path) -> None:
    for index, precision in enumerate(("fp32", "bf16", "fp32")):
        found = train(tmp_path / str(index), replace(FAST, epochs=1, precision=precision))
        assert found.details["precision"] == precision


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    student = network(1)
    student[0].requires_grad_(False)
    before = student[0].weight.clone()
    found = train(tmp_path, FAST, student)
    assert torch.equal(found.model[0].weight, before)
    assert not torch.equal(found.model[3].weight, network(1)[3].weight)


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    data = given(tmp_path)
    distill(network(1), replace(FAST, epochs=2, holdout=0.2), data)
    assert data.progress.steps == data.progress.total == 16
    assert any(text.startswith("epoch 2/2, loss ") for text in data.progress.texts)
    assert any("agreement 0." in text for text in data.progress.texts)


def test_batch_norm_learns_its_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    ).eval()
    found = train(tmp_path, FAST, student)
    assert not torch.equal(found.model[1].running_mean, torch.zeros(16))
    assert int(found.model[1].num_batches_tracked) == found.details["steps"]


def test_recomputed_activations_give_the_same_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, hidden_dropout_prob=0.1,
        attn_implementation="eager",
    )  # fmt: skip

    class Net(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.bert = transformers.BertModel(config, add_pooling_layer=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.bert(input_ids=x).last_hidden_state[:, 0])

    inputs = (Tensor("x", "int64", ("batch", 4)),)
    x = np.random.default_rng(0).integers(0, 20, (48, 4))
    found = []
    for thrifty in (False, True):
        options = replace(FAST, epochs=1, gradient_checkpointing=thrifty)
        data = context(tmp_path / str(thrifty), Net(0).eval(), {"x": x}, inputs=inputs)
        result = distill(Net(1).eval(), options, data)
        assert not result.model.bert.is_activation_checkpointing
        found.append(result.model.state_dict())
    for name, values in found[0].items():
        assert torch.allclose(values, found[1][name], atol=1e-6), name


def test_what_was_never_trained_was_not_pruned(tmp_path: Path) -> None:
    student = network(1)
    with torch.no_grad():
        student[3].weight.zero_()
    found = train(tmp_path, FAST, student)
    assert found.details["pruned_tensors"] == 0
    assert found.model[3].weight.abs().min() > 0
