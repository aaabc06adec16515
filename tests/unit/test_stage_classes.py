"""Labels that count the model's classes in another order are found by the answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgepack.context import OutputKind
from edgepack.context.answers import AnswerBatch
from edgepack.errors import DataError
from edgepack.stages.classes import check_class_order

# Fashion-MNIST's classes, in the order of the model and as folders sort them: four coincide.
MODEL = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
SORTED = tuple(sorted(MODEL))


def check(truth: np.ndarray, answers: np.ndarray, names: tuple[str, ...] = SORTED) -> None:
    """Check labels that count the names, for answers that count those of the model."""
    labels = np.array([names.index(MODEL[index]) for index in truth])

    def batches() -> Iterator[AnswerBatch]:
        for start in range(0, len(labels), 16):
            part = slice(start, start + 16)
            yield AnswerBatch([np.eye(10)[answers[part]]], labels[part], len(labels[part]))

    check_class_order(["scores"], [OutputKind("scores")], names, batches)


def answer(truth: np.ndarray, accuracy: float) -> np.ndarray:
    """Answer by the truth, or at random."""
    generator = np.random.default_rng(0)
    wrong = generator.random(len(truth)) > accuracy
    return np.where(wrong, generator.integers(0, 10, len(truth)), truth)


def test_an_order_by_name_is_found_and_the_model_s_is_suggested() -> None:
    truth = np.arange(200) % 10
    with pytest.raises(DataError) as caught:
        check(truth, answer(truth, 0.8))
    assert caught.value.code == "class-order"
    assert f"the answers suggest: {', '.join(MODEL)}" in caught.value.hint


@pytest.mark.parametrize("accuracy", [0.1, 0.4, 0.9, 1.0])
def test_the_model_s_own_order_passes_at_any_accuracy(accuracy: float) -> None:
    truth = np.arange(400) % 10
    check(truth, answer(truth, accuracy), MODEL)


def test_confused_classes_are_not_another_order() -> None:
    """All shirts are answered as coats, and coats are right."""
    truth = np.arange(200) % 10
    answers = np.where(truth == MODEL.index("shirt"), MODEL.index("coat"), truth)
    check(truth, answers, MODEL)


def test_two_classes_at_chance_are_not_swapped() -> None:
    names = MODEL[:2]
    counts = [[9, 11], [12, 8]]
    labels = np.repeat([0, 1], 20)
    answers = np.concatenate([np.repeat([0, 1], row) for row in counts])
    batch = AnswerBatch([np.eye(2)[answers]], labels, 40)
    check_class_order(["scores"], [OutputKind("scores")], names, lambda: iter([batch]))
    swapped = AnswerBatch([np.eye(2)[1 - labels]], labels, 40)
    with pytest.raises(DataError):
        check_class_order(["scores"], [OutputKind("scores")], names, lambda: iter([swapped]))


def test_a_few_samples_show_no_order() -> None:
    truth = np.arange(40) % 10
    check(truth, truth)
