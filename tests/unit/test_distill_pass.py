"""Distillation: the losses by their formulas, the students, every kind of input and output."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgepack.errors import ChainError
from edgepack.metrics.catalogue import load_metrics
from edgepack.passes.distill import DistillOptions, distill, replay
from edgepack.passes.distill.features import Features
from edgepack.passes.distill.loss import (
    Head,
    are_probabilities,
    compute_hard_loss,
    compute_soft_loss,
    measure_cosine_distance,
)
from edgepack.passes.distill.student import find_layers, keep_layers, spread
from edgepack.runtime.tensor import Tensor
from support.training_cases import INPUTS, SCORES, context, drawn, labels_of, network, same

pytestmark = pytest.mark.usefixtures("one_thread")

SCORE_HEAD = Head(0, SCORES[0], False, 1.0)
VALUE_HEAD = Head(0, Tensor("y", "float32", ("batch", 4), "values"), False, 2.0)
FAST = DistillOptions(epochs=3, batch_size=32, lr=0.02)


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3)


def centred(*shape: int, seed: int = 0) -> torch.Tensor:
    found = scores(*shape, seed=seed)
    return found - found.mean(-1, keepdim=True)


# Losses


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_hinton_s(temperature: float) -> None:
    student, teacher = centred(5, 3), centred(5, 3, seed=1)
    options = DistillOptions(temperature=temperature)
    found = compute_soft_loss([SCORE_HEAD], [student], {0: teacher}, 5, options)
    p, q = (F.softmax(t / temperature, 1).double() for t in (teacher, student))
    expected = temperature**2 * (p * (p.log() - q.log())).sum(1)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert compute_soft_loss([SCORE_HEAD], [teacher], {0: teacher}, 5, options).abs().max() < 1e-6


def test_the_gradient_does_not_shrink_with_the_temperature() -> None:
    """What T squared is for: at high temperatures the gradient tends to (s - t) / classes."""
    student, teacher = centred(1, 3), centred(1, 3, seed=1)
    student.requires_grad_()
    compute_soft_loss(
        [SCORE_HEAD], [student], {0: teacher}, 1, DistillOptions(temperature=100)
    ).sum().backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=0.03)


def test_scores_do_not_drift() -> None:
    """What a softmax cannot see: at high temperatures, half the mean squared error is left."""
    student, teacher = scores(5, 3), scores(5, 3, seed=1)
    options = DistillOptions(temperature=100)
    found = compute_soft_loss([SCORE_HEAD], [student + 2], {0: teacher}, 5, options)
    expected = (student + 2 - teacher).square().mean(1) / 2
    assert torch.allclose(found, expected, rtol=0.05, atol=0.01)


def test_scores_of_positions_are_averaged() -> None:
    student, teacher = scores(2, 7, 3), scores(2, 7, 3, seed=1)
    found = compute_soft_loss([SCORE_HEAD], [student], {0: teacher}, 2, DistillOptions())
    each = compute_soft_loss(
        [SCORE_HEAD], [student.reshape(14, 3)], {0: teacher.reshape(14, 3)}, 14, DistillOptions()
    )
    assert torch.allclose(found, each.reshape(2, 7).mean(1))


def test_probabilities_are_taken_back_to_scores() -> None:
    student, teacher = centred(5, 3), centred(5, 3, seed=1)
    plain = compute_soft_loss([SCORE_HEAD], [student], {0: teacher}, 5, DistillOptions())
    head = replace(SCORE_HEAD, probabilities=True)
    soft = [student.softmax(1)], {0: teacher.softmax(1)}
    assert torch.allclose(compute_soft_loss([head], *soft, 5, DistillOptions()), plain, atol=1e-4)
    assert are_probabilities(teacher.softmax(1))
    assert not are_probabilities(teacher)
    assert not are_probabilities(teacher.log_softmax(1))


def test_classes_that_are_masked_out_count_nothing() -> None:
    student, teacher = scores(4, 3), scores(4, 3, seed=1)
    student[:, 2] = teacher[:, 2] = -math.inf
    found = compute_soft_loss(
        [SCORE_HEAD], [student], {0: teacher}, 4, DistillOptions(temperature=2)
    )
    alone = compute_soft_loss(
        [SCORE_HEAD], [student[:, :2]], {0: teacher[:, :2]}, 4, DistillOptions(temperature=2)
    )
    assert torch.allclose(found, alone, atol=1e-5)


def test_values_are_compared_by_their_variance_and_their_direction() -> None:
    student, teacher = scores(5, 4), scores(5, 4, seed=1)
    found = compute_soft_loss([VALUE_HEAD], [student], {0: teacher}, 5, DistillOptions())
    assert torch.allclose(found, (student - teacher).square().mean(1) / 2)
    both = compute_soft_loss([VALUE_HEAD], [student], {0: teacher}, 5, DistillOptions(cosine=0.5))
    cosine = F.cosine_similarity(student, teacher, dim=1)
    assert torch.allclose(both - found, 0.5 * (1 - cosine), atol=1e-6)
    pictures = scores(2, 3, 4, 4), scores(2, 3, 4, 4, seed=1)
    assert measure_cosine_distance(*pictures, 2).shape == (2,)


def test_hard_targets_of_some() -> None:
    student, labels = scores(4, 3), torch.tensor([2, -1, 0, -100])
    found, known = compute_hard_loss(SCORE_HEAD, [student], labels, 4)
    assert known.tolist() == [True, False, True, False]
    assert found[[1, 3]].tolist() == [0, 0]
    expected = F.cross_entropy(student[[0, 2]], labels[[0, 2]], reduction="none")
    assert torch.allclose(found[[0, 2]], expected)


def test_hard_targets_of_positions() -> None:
    student, labels = scores(2, 4, 3), torch.tensor([[0, -1, 2, -1], [-1, -1, -1, -1]])
    found, known = compute_hard_loss(SCORE_HEAD, [student], labels, 2)
    assert known.tolist() == [True, False]
    expected = F.cross_entropy(student[0, [0, 2]], torch.tensor([0, 2]))
    assert torch.allclose(found, torch.stack((expected, torch.tensor(0.0))))


def test_values_with_labels() -> None:
    student, labels = scores(3, 1), torch.tensor([1.0, math.nan, -2.0])
    head = replace(VALUE_HEAD, tensor=Tensor("y", "float32", ("batch", 1), "values"))
    found, known = compute_hard_loss(head, [student], labels, 3)
    assert known.tolist() == [True, False, True]
    expected = (student[:, 0] - labels.nan_to_num()).square() / 2 * known
    assert torch.allclose(found, expected)


# Whole distillations


def agreement(one: nn.Module, other: nn.Module, count: int = 500) -> float:
    x = torch.from_numpy(drawn(count, seed=9))
    with torch.no_grad():
        return float((one(x).argmax(1) == other(x).argmax(1)).float().mean())


def test_without_labels(tmp_path: Path) -> None:
    teacher, student = network(0), network(1)
    before = agreement(teacher, student)
    found = distill(
        student, replace(FAST, epochs=15), context(tmp_path, teacher, {"x": drawn(400)})
    )
    assert agreement(teacher, found.model) > max(0.9, before + 0.2)
    assert found.details["labelled"] == 0
    assert found.recipe == {}
    assert "400 samples, 0 with a label" in found.notes[0]


def test_the_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    teacher = network(0, dropout=0.5)
    before = network(0, dropout=0.5)
    distill(network(1), FAST, context(tmp_path, teacher, {"x": drawn(200)}))
    assert same(teacher, before)
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_labels_correct_a_teacher_that_is_wrong(tmp_path: Path) -> None:
    """Alpha 0 learns from labels alone, alpha 1 from the teacher alone."""
    teacher, truth, x = network(0), network(5), drawn(400)
    arrays = {"x": x, "labels": labels_of(truth, x)}
    found = {}
    for alpha in (0.0, 1.0):
        options = replace(FAST, epochs=25, alpha=alpha)
        data = context(tmp_path / str(alpha), teacher, arrays)
        found[alpha] = distill(network(1), options, data).model
    assert agreement(found[0.0], truth) > 0.85 > agreement(found[1.0], truth) + 0.2
    assert agreement(found[1.0], teacher) > 0.9


def test_a_few_labels_among_many_samples(tmp_path: Path) -> None:
    x = drawn(300)
    labels = np.full(300, -1)
    labels[::10] = labels_of(network(0), x)[::10]
    data = context(tmp_path, network(0), {"x": x, "labels": labels})
    found = distill(network(1), FAST, data)
    assert found.details["labelled"] == 30
    assert found.details["score"] == "agreement"  # too few of those held out have one


def test_top1_where_enough_of_the_held_out_have_labels(tmp_path: Path) -> None:
    x = drawn(1000)
    labels = labels_of(network(0), x)
    labels[::4] = (labels[::4] + 1) % 3  # the teacher is wrong on a quarter
    data = context(tmp_path, network(0), {"x": x, "labels": labels})
    found = distill(network(1), replace(FAST, holdout=0.3), data)
    assert found.details["score"] == "top-1"
    assert found.details["teacher_score"] == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize(
    ("name", "label", "sign"), [("f1", "f1", 1), ("mae", "neg_mae", -1), ("cosine", "cosine", 1)]
)
def test_the_metric_of_the_build_chooses_the_student(
    tmp_path: Path, name: str, label: str, sign: int
) -> None:
    x = drawn(1000)
    arrays = {"x": x}
    with torch.no_grad():
        answers = network(0)(torch.from_numpy(x)).numpy()
    if name == "f1":
        arrays["labels"] = answers.argmax(1)
    elif name == "mae":
        arrays["labels"] = answers + np.float32(0.5)
    (task,) = load_metrics((name,), (), SCORES, labelled=name != "cosine")
    data = replace(context(tmp_path, network(0), arrays), metric=task)
    data = replace(data, gates={"metric_ratio": 0.5, "max_drop": 1000.0})
    found = distill(network(1), replace(FAST, holdout=0.3, alpha=1, stop="gate"), data)
    expected = {"f1": 1.0, "mae": -0.5, "cosine": 1.0}[name]
    assert found.details["score"] == label
    assert found.details["teacher_score"] == pytest.approx(expected, rel=1e-5)
    assert sign * found.details["scores"][-1] > 0


def test_kept_answers_are_the_teacher_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(FAST, epochs=2)
    kept = distill(network(1), options, context(tmp_path / "a", network(0), {"x": drawn(200)}))
    monkeypatch.setattr("edgepack.passes.distill.teacher.ANSWERS_BYTES", 0)
    data = context(tmp_path / "b", network(0), {"x": drawn(200)})
    asked = distill(network(1), options, data)
    assert not (data.work / "answers").exists()
    for name, values in kept.model.state_dict().items():
        assert torch.allclose(values, asked.model.state_dict()[name], atol=1e-5)


class Pair(nn.Module):
    """Tokens and a mask to scores of each token and an embedding of all."""

    def __init__(self, seed: int, wide: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table, self.mix = nn.Embedding(12, wide), nn.Linear(wide, wide)
            self.tags, self.whole = nn.Linear(wide, 4), nn.Linear(wide, 5)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = torch.tanh(self.mix(self.table(tokens))) * mask[..., None]
        return self.tags(hidden), self.whole(hidden.mean(1)), mask.sum(1).long()


PAIR = (Tensor("tokens", "int64", ("batch", "n")), Tensor("mask", "float32", ("batch", "n")))
PAIR_OUT = (
    Tensor("tags", "float32", ("batch", "n", 4), "scores"),
    Tensor("embedding", "float32", ("batch", 5)),
    Tensor("length", "int64", ("batch",)),
)


def tokens(count: int, length: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = (generator.random((count, length)) < 0.8).astype(np.float32)
    return {"tokens": generator.integers(0, 12, (count, length)), "mask": mask}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    teacher, fed = Pair(0).eval(), tokens(400)
    labels = np.where(fed["mask"] > 0, 1, -1).astype(np.int64)
    arrays = {**fed, "labels": labels}
    data = context(tmp_path, teacher, arrays, inputs=PAIR, outputs=PAIR_OUT)
    found = distill(Pair(1).eval(), replace(FAST, epochs=20, alpha=1.0, holdout=0.1), data)
    with torch.no_grad():
        new = {name: torch.from_numpy(a) for name, a in tokens(100, length=9, seed=1).items()}
        tags, whole, length = teacher(**new)
        ours = found.model(**new)
    assert (ours[0].argmax(-1) == tags.argmax(-1)).float().mean() > 0.9
    assert (ours[1] - whole).square().mean() < 0.1 * whole.var()
    assert torch.equal(ours[2], length)
    labelled = distill(
        Pair(1).eval(), replace(FAST, epochs=12, alpha=0.1), context(
            tmp_path / "labels", teacher, arrays, inputs=PAIR, outputs=PAIR_OUT)
    )  # fmt: skip
    with torch.no_grad():
        chosen = labelled.model(**new)[0].argmax(-1)
    assert (chosen[new["mask"] > 0] == 1).float().mean() > 0.9


RAGGED = """
import numpy as np


def training():
    generator = np.random.default_rng(0)
    for i in range(120):
        n = 3 + i % 4
        yield {"tokens": generator.integers(0, 12, n), "mask": np.ones(n, np.float32)}
"""


def test_samples_of_different_lengths(tmp_path: Path) -> None:
    from edgepack.data import open_samples

    (tmp_path / "ragged.py").write_text(RAGGED)
    data = context(tmp_path, Pair(0).eval(), tokens(2), inputs=PAIR, outputs=PAIR_OUT)
    samples = open_samples(f"{tmp_path / 'ragged.py'}:training", PAIR)
    found = distill(Pair(1).eval(), replace(FAST, batch_size=16), replace(data, training=samples))
    # 30 of each length, 29 or 30 of them learnt from: a batch of 16 and a rest.
    assert found.details["steps"] == 3 * 8


class Cell(nn.Module):
    """A state whose batch is not at axis 0: feeds cannot be joined."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.mix = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        following = torch.tanh(self.mix(torch.cat((x, state[0]), 1)))
        return following * 2, torch.stack((following, state[0]))


def test_whole_feeds_with_a_state(tmp_path: Path) -> None:
    inputs = (Tensor("x", "float32", (1, 8)), Tensor("state", "float32", (2, 1, 4)))
    outputs = (Tensor("y", "float32", (1, 4)), Tensor("following", "float32", (2, 1, 4)))
    generator = np.random.default_rng(0)
    arrays = {
        "x": generator.standard_normal((64, 1, 8)).astype(np.float32),
        "state": generator.standard_normal((64, 2, 1, 4)).astype(np.float32),
    }
    data = context(tmp_path, Cell(0).eval(), arrays, inputs=inputs, outputs=outputs)
    options = replace(FAST, epochs=10, batch_size=8, holdout=0.1)
    found = distill(Cell(1).eval(), options, data)
    assert found.details["score"] == "SNR in dB"
    assert found.details["scores"][-1] > found.details["scores"][0] + 6


def test_a_fixed_batch(tmp_path: Path) -> None:
    class Two(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.reshape(2, 6))

    inputs = (Tensor("x", "float32", (2, 6)),)
    data = context(
        tmp_path, Two(*network(0)).eval(), {"x": drawn(65)}, inputs=inputs,
        outputs=(Tensor("y", "float32", (2, 3), "scores"),),
    )  # fmt: skip
    found = distill(Two(*network(1)).eval(), replace(FAST, batch_size=8, holdout=0.1), data)
    assert found.details["steps"] > 0
    assert len(found.details["scores"]) == 3


AUGMENT = """
import torch


def noise(inputs, generator):
    return {"x": inputs["x"] + torch.randn(inputs["x"].shape, generator=generator)}


def no_batch(inputs, generator):
    return {"x": inputs["x"][:1]}


def half(inputs, generator):
    return {"x": inputs["x"].half()}


def other(inputs, generator):
    return {"y": inputs["x"]}
"""


class Doubling(nn.Sequential):
    """Writes into its input."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.mul_(2))


def test_a_network_that_writes_into_its_input(tmp_path: Path) -> None:
    """The teacher is given what the student is, not what the student left of it."""
    (tmp_path / "augment.py").write_text(AUGMENT)
    data = context(tmp_path, Doubling(*network(0)).eval(), {"x": drawn(64)}, search=tmp_path)
    options = replace(FAST, epochs=1, augment="augment.py:noise", lr=1e-12, holdout=0.5)
    found = distill(Doubling(*network(0)).eval(), options, data)
    assert found.details["loss"] < 1e-9
    assert found.details["scores"] == [1.0]


def test_augmented_samples_are_seen_by_both(tmp_path: Path) -> None:
    """Samples that all look alike teach little; moved about, they show the whole teacher."""
    (tmp_path / "augment.py").write_text(AUGMENT)
    found = {}
    for augment in ("", "augment.py:noise"):
        options = replace(FAST, epochs=60, augment=augment, batch_size=16, holdout=0)
        alike = drawn(16) / 100
        data = context(tmp_path / f"n{bool(augment)}", network(0), {"x": alike}, search=tmp_path)
        made = distill(network(1), options, data)
        found[augment] = agreement(made.model, network(0))
    assert found["augment.py:noise"] > found[""] + 0.1


@pytest.mark.parametrize("function", ["no_batch", "half", "other"])
def test_an_augmentation_that_breaks_the_batch(tmp_path: Path, function: str) -> None:
    (tmp_path / "augment.py").write_text(AUGMENT)
    options = replace(FAST, augment=f"augment.py:{function}")
    with pytest.raises(ChainError) as caught:
        distill(
            network(1), options, context(tmp_path, network(0), {"x": drawn(64)}, search=tmp_path)
        )
    assert caught.value.code == "training-augment"


def test_features_point_the_same_way(tmp_path: Path) -> None:
    options = replace(FAST, epochs=15, features="0", feature_weight=20.0)
    plain = replace(options, features="")
    x = torch.from_numpy(drawn(100, seed=4))
    teacher = network(0)
    cosines = []
    for index, chosen in enumerate((plain, options)):
        data = context(tmp_path / str(index), teacher, {"x": drawn(300)})
        made = distill(network(1), chosen, data).model
        assert not made[0]._forward_hooks
        with torch.no_grad():
            cosines.append(float(F.cosine_similarity(made[0](x), teacher[0](x), dim=1).mean()))
    assert not teacher[0]._forward_hooks
    assert cosines[1] > cosines[0] + 0.3
    assert cosines[1] > 0.8


@pytest.mark.parametrize(("features", "student"), [("nothing", 16), ("0", 8), ("0=2=", 16)])
def test_features_that_are_not_there(tmp_path: Path, features: str, student: int) -> None:
    options = replace(FAST, features=features)
    data = context(tmp_path, network(0), {"x": drawn(64)})
    with pytest.raises(ChainError) as caught:
        distill(network(1, wide=student), options, data)
    assert caught.value.code == "distill-features"


def test_features_of_an_answer_with_names() -> None:
    class Answer:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value

        def to_tuple(self) -> tuple[torch.Tensor, ...]:
            return (self.value,)

    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return Answer(x)

    both = nn.Sequential(Named()), nn.Sequential(Named())
    features = Features(DistillOptions(features="0"), *both)
    both[0](torch.ones(2, 3))
    both[1](torch.ones(2, 3) * 2)
    assert torch.allclose(features.loss(2), torch.zeros(2), atol=1e-6)
    features.close()


# Students


@pytest.mark.parametrize(
    ("count", "drop", "left"),
    [(12, 0.5, (0, 2, 4, 7, 9, 11)), (6, 0.5, (0, 2, 5)), (4, 0.75, (0,)), (4, 0.99, (0,)),
     (2, 0.5, (0,)), (3, 0.3, (0, 2))],
)  # fmt: skip
def test_which_layers_stay(count: int, drop: float, left: tuple[int, ...]) -> None:
    assert spread(count, drop) == left


def bert(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    from edgepack.source.positional import NamedModule

    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=6, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=12, num_labels=3,
        )  # fmt: skip
        inner = transformers.BertForSequenceClassification(config)
    elif kind == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=30, dim=16, n_layers=6, n_heads=2, hidden_dim=32,
            max_position_embeddings=12, num_labels=3,
        )  # fmt: skip
        inner = transformers.DistilBertForSequenceClassification(config)
    else:
        config = transformers.AlbertConfig(
            vocab_size=30, hidden_size=16, embedding_size=16, num_hidden_layers=6,
            num_attention_heads=2, intermediate_size=32, max_position_embeddings=12,
        )  # fmt: skip
        inner = transformers.AlbertForSequenceClassification(config)
    return NamedModule(inner, ("input_ids", "attention_mask"), ("logits",)).eval()


@pytest.mark.parametrize(
    ("kind", "name", "option"),
    [
        ("bert", "inner.bert.encoder.layer", "num_hidden_layers"),
        ("distilbert", "inner.distilbert.transformer.layer", "n_layers"),
    ],
)
def test_layers_of_a_transformer_are_left_out(
    tmp_path: Path, kind: str, name: str, option: str
) -> None:
    inputs = tuple(Tensor(n, "int64", ("batch", "n")) for n in ("input_ids", "attention_mask"))
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 30, (96, 8))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    teacher, module = bert(kind), bert(kind)
    assert find_layers(module)[0] == name
    kept = [module.get_submodule(name)[i] for i in (0, 2, 4)]
    data = context(tmp_path, teacher, arrays, inputs=inputs)
    found = distill(module, replace(FAST, epochs=1, layers="0,2,4"), data)
    assert list(found.model.get_submodule(name)) == kept
    assert getattr(found.model.inner.config, option) == 3
    assert getattr(teacher.inner.config, option) == 6
    assert found.recipe == {"list": name, "keep": [0, 2, 4]}
    again = replay(bert(kind), found.recipe, data)
    again.load_state_dict(found.model.state_dict())
    fed = [torch.from_numpy(arrays[t.name][:4]) for t in inputs]
    with torch.no_grad():
        assert torch.equal(again(*fed)[0], found.model(*fed)[0])


def test_shared_layers_cannot_be_left_out() -> None:
    with pytest.raises(ChainError) as caught:
        find_layers(bert("albert"))
    assert caught.value.code == "distill-layers"
    assert "ALBERT" in caught.value.why


def test_layers_of_a_plain_stack() -> None:
    stack = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))))
    name, _ = find_layers(stack)
    assert name == "1"
    third = stack[1][3]
    keep_layers(stack, "1", [0, 3])
    assert len(stack[1]) == 2
    assert stack[1][1] is third


FACTORY = """
from torch import nn


def small(wide=4):
    return nn.Sequential(nn.Linear(6, wide), nn.ReLU(), nn.Linear(wide, 3))


def wrong(outputs=4):
    return nn.Linear(6, outputs)


def soft():
    return nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))


def narrow():
    return nn.Linear(5, 3)
"""


def test_a_student_of_the_user_s(tmp_path: Path) -> None:
    (tmp_path / "students.py").write_text(FACTORY)
    options = replace(FAST, student="students.py:small", student_args={"wide": 7}, epochs=40)
    data = context(tmp_path, network(0), {"x": drawn(300)}, search=tmp_path)
    found = distill(network(0), options, data)
    assert found.model[0].out_features == 7
    assert agreement(found.model, network(0)) > 0.8
    again = replay(network(0), found.recipe, data)
    again.load_state_dict(found.model.state_dict())
    assert same(again, found.model)


@pytest.mark.parametrize("factory", ["wrong", "soft", "narrow"])
def test_a_student_that_answers_something_else(tmp_path: Path, factory: str) -> None:
    (tmp_path / "students.py").write_text(FACTORY)
    options = replace(FAST, student=f"students.py:{factory}")
    data = context(tmp_path, network(0), {"x": drawn(64)}, search=tmp_path, inputs=INPUTS)
    with pytest.raises(ChainError) as caught:
        distill(network(0), options, data)
    assert caught.value.code == "distill-student"
