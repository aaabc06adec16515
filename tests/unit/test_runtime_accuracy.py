"""Decisions of every kind of output, and the labels that are held against them."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.errors import EdgepackError
from edgepack.runtime.parity.accuracy import (
    NONE,
    Accuracy,
    TaskMetric,
    agreement,
    decisions,
    read_labels,
)
from edgepack.runtime.tensor import Tensor

generator = np.random.default_rng(0)
MAPS = generator.normal(size=(6, 5, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "values", "chosen"),
    [
        ("scores", [[1, 3, 2], [np.nan, 0, 1]], [1, NONE]),
        ("scores", [[0.2], [-0.1]], [1, 0]),
        ("logit", [[0.2], [0.0], [-1e-9], [np.nan]], [[1], [0], [0], [NONE]]),
        ("probability", [0.2, 0.5, 0.51], [0, 0, 1]),
    ],
)
def test_what_an_output_decides(kind: str, values: list[object], chosen: list[object]) -> None:
    np.testing.assert_array_equal(decisions(np.array(values), kind), chosen)


def test_values_decide_nothing() -> None:
    assert decisions(MAPS, "values") is None
    assert agreement(MAPS, MAPS, "values") == (0, 0, 0)


@pytest.mark.parametrize("kind", ["scores", "logit"])
def test_one_score_disagrees_where_its_sign_does(kind: str) -> None:
    """The largest of one is always the same one."""
    original = np.array([[1.0], [2.0], [-1.0], [3.0]])
    assert agreement(original, -original, kind) == (4, 0, 0)
    assert agreement(original, original * [[1], [1], [1], [-1]], kind) == (4, 3, 3)
    accuracy = Accuracy("top5", kind)
    accuracy.update(original, -original, np.array([1, 1, 0, 0]))
    assert (accuracy.original, accuracy.model) == (3, 1)


@pytest.mark.parametrize("axis", [1, -1])
def test_maps_agree_position_by_position(axis: int) -> None:
    original = np.moveaxis(MAPS, 1, axis)
    measured = original.copy()
    measured[0, 0, 0, 0] += 100
    best = original.argmax(axis)
    count, same, _ = agreement(original, measured, "scores", axis)
    assert count == best.size
    assert same == np.count_nonzero(best == measured.argmax(axis)) < count


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("form", ["classes", "one-hot", "float"])
def test_labels_of_maps(axis: int, form: str) -> None:
    scores = np.moveaxis(MAPS, 1, axis)
    best = scores.argmax(axis)
    labels = best.astype(np.float64) if form == "float" else best
    if form == "one-hot":
        labels = np.moveaxis(np.eye(5)[best], -1, axis)
    accuracy = Accuracy("top1", "scores", axis)
    accuracy.update(scores, -scores, labels)
    assert (accuracy.samples, accuracy.original) == (best.size, best.size)
    assert accuracy.model == 0


def test_positions_without_a_label_do_not_count() -> None:
    labels = MAPS.argmax(1)
    labels[0, 0] = 255
    labels[1, 0] = -100
    labels[2, 0] = -1
    accuracy = Accuracy("top1", "scores", 1)
    accuracy.update(MAPS, MAPS, labels)
    assert accuracy.samples == accuracy.original == labels.size - 9


@pytest.mark.parametrize(
    ("kind", "shape", "labels", "code"),
    [
        ("scores", (4, 3), np.array([0, 1, 2, 3]), "labels-range"),
        ("scores", (4, 3), np.array([0, 1, 2, -1]), "labels-range"),
        ("scores", (4, 3), np.array([0, 1, 2, 0.5]), "labels-range"),
        ("scores", (4, 3), np.array([0, 1, 2, np.nan]), "labels-range"),
        ("scores", (4, 3), np.zeros((4, 2), np.int64), "labels-shape"),
        ("scores", (4, 3), np.ones((4, 3), np.int64), "labels-shape"),
        ("logit", (4, 1), np.array([0, 1, 2, 0]), "labels-range"),
        ("logit", (4, 1), np.array([1, -1, 1, -1]), "labels-range"),
        ("probability", (4, 2), np.array([0, 1, 1, 0]), "labels-shape"),
        ("classes", (4, 2, 2), np.zeros((4, 2), np.int64), "labels-shape"),
    ],
)
def test_labels_that_are_refused(
    kind: str, shape: tuple[int, ...], labels: np.ndarray, code: str
) -> None:
    with pytest.raises(EdgepackError) as caught:
        read_labels(labels, shape, kind)
    assert caught.value.code == code


def test_the_labels_are_of_the_first_output_that_they_fit() -> None:
    outputs = (
        Tensor("box", "float32", ("n", 4)),
        Tensor("mask", "float32", ("n", 1, 4, 3), "logit"),
        Tensor("scores", "float32", ("n", 5, 4, 3), "scores", 1),
        Tensor("logits", "float32", ("n", 5), "scores"),
    )
    answers = [np.zeros((6, 4)), MAPS[:, :1], MAPS, MAPS[..., 0, 0]]
    for labels, index in ((MAPS.argmax(1), 2), (MAPS[..., 0, 0].argmax(1), 3)):
        metric = TaskMetric(outputs, "top1")
        metric.update(answers, answers, labels)
        result = metric.result()
        assert metric.index == index
        assert result is not None
        assert result["original"] == 1.0
