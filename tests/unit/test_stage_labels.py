"""What the original's answers and labels tell before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgepack.context import Labels, OutputKind
from edgepack.context.answers import AnswerBatch
from edgepack.errors import EdgepackError
from edgepack.stages.answers import AnswerSurvey, refuse_unprovable
from edgepack.stages.labels import (
    Grade,
    binomial_tail,
    infer_kinds,
    judge_labels,
)

COUNT = 48
generator = np.random.default_rng(0)
NORMAL = generator.normal(size=(COUNT, 6, 8, 8)).astype(np.float32)
ROWS = NORMAL[:, :, 0, 0]


def settle(
    answers: dict[str, np.ndarray],
    labels: np.ndarray | None,
    stated: dict[str, tuple[str | None, int | None]] | None = None,
    allow_chance: bool = False,
) -> tuple[tuple[OutputKind, ...], Labels]:
    """Survey answers in two batches, and judge their labels."""
    names = list(answers)
    survey = AnswerSurvey(lambda count: names)

    def batches() -> Iterator[AnswerBatch]:
        for part in (slice(0, 32), slice(32, COUNT)):
            rows = None if labels is None else labels[part]
            arrays = [answers[name][part] for name in names]
            yield AnswerBatch(arrays, rows, len(range(COUNT)[part]))

    for batch in batches():
        survey.add(batch.answers, batch.labels, batch.count)
    found = survey.to_json()
    refuse_unprovable(found, names, False)
    kinds = infer_kinds(found, names, [(stated or {}).get(name, (None, None)) for name in names])
    return judge_labels(kinds, names, found, batches, allow_chance)


@pytest.mark.parametrize(
    ("answer", "labels", "kind", "axis"),
    [
        (ROWS, ROWS.argmax(1), "scores", -1),
        (ROWS, np.eye(6, dtype=np.float32)[ROWS.argmax(1)], "scores", -1),
        (ROWS[:, :1], ROWS[:, 0] > 0, "logit", -1),
        (ROWS[:, 0], (ROWS[:, :1] > 0).astype(np.float64), "logit", -1),
        (1 / (1 + np.exp(-ROWS[:, :1])), ROWS[:, 0] > 0, "probability", -1),
        (NORMAL, NORMAL.argmax(1), "scores", 1),
        (NORMAL.transpose(0, 2, 3, 1), NORMAL.argmax(1), "scores", -1),
        (NORMAL[:, :, 0].transpose(0, 2, 1), NORMAL[:, :, 0].argmax(1), "scores", -1),
        (NORMAL, np.eye(6)[NORMAL.argmax(1)].transpose(0, 3, 1, 2), "scores", 1),
        (NORMAL[:, :1], NORMAL[:, 0] > 0, "logit", -1),
        (NORMAL.argmax(1), NORMAL.argmax(1), "classes", -1),
    ],
)  # fmt: skip
def test_labels_of_every_form_are_used(
    answer: np.ndarray, labels: np.ndarray, kind: str, axis: int
) -> None:
    (output,), found = settle({"y": answer}, labels)
    assert (output.kind, output.axis, found) == (kind, axis, Labels(used=True))


@pytest.mark.parametrize(
    ("answer", "labels", "reason"),
    [
        (NORMAL, ROWS.argmax(1), "no output is known to decide"),
        (ROWS[:, :1], ROWS[:, 0] * 3, "no output is known to decide"),
        (ROWS, ROWS + 0.1, "no output is known to decide"),
        (ROWS, ROWS > 0, "several classes for a sample"),
        (ROWS[:, :1], np.where(ROWS[:, 0] > 0, 1, -1), "from -1 to 1"),
    ],
)
def test_labels_that_cannot_be_used_say_why(
    answer: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    _, found = settle({"y": answer}, labels)
    assert not found.used
    assert reason in found.unused


def test_a_stated_kind_makes_labels_of_several_classes_usable() -> None:
    _, found = settle({"y": ROWS}, ROWS > 0, {"y": ("logit", None)})
    assert found.used


@pytest.mark.parametrize("bias", [0.0, 9.0])
def test_scores_of_one_class_are_read_as_a_decision_between_two(bias: float) -> None:
    (output,), _ = settle({"y": ROWS[:, :1] + bias}, None, {"y": ("scores", None)})
    assert output.kind == "logit"


def test_the_output_whose_classes_the_labels_are_is_found_among_several() -> None:
    answers = {"features": generator.normal(size=(COUNT, 9)).astype(np.float32), "logits": ROWS}
    kinds, found = settle(answers, ROWS.argmax(1))
    assert [kind.kind for kind in kinds] == ["values", "scores"]
    assert found.used


def test_an_axis_that_an_output_lacks_is_refused() -> None:
    with pytest.raises(EdgepackError) as caught:
        settle({"y": ROWS}, None, {"y": ("scores", 3)})
    assert caught.value.code == "output-axis"


LARGE = generator.normal(size=(COUNT, 100)).astype(np.float32)
ALWAYS_ONE = ROWS[:, :2] * 0.01 + [3, 0]


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        (LARGE, generator.permutation(LARGE.argmax(1))),
        (LARGE, (LARGE.argmax(1) + 1) % 100),
        (LARGE, np.full(COUNT, 99)),
        (ROWS[:, :1], generator.permutation(ROWS[:, 0] > 0)),
        (ROWS[:, :1], ROWS[:, 0] < 0),
        (ALWAYS_ONE, np.arange(COUNT) % 2),
        (NORMAL, NORMAL[::-1].argmax(1)),
    ],
)
def test_labels_that_fit_no_better_than_chance_are_an_error(
    answer: np.ndarray, labels: np.ndarray
) -> None:
    with pytest.raises(EdgepackError) as caught:
        settle({"y": answer}, labels)
    assert caught.value.code == "original-chance"
    assert "guessing" in caught.value.why
    _, found = settle({"y": answer}, labels, allow_chance=True)
    assert found.used
    assert "no more often than by guessing" in found.chance


def graded(right: int, total: int, classes: int) -> Grade:
    """Scores of so many classes, right on the first `right` of evenly spread labels."""
    labels = np.arange(total) % classes
    chosen = np.where(np.arange(total) < right, labels, (labels + 1) % classes)
    grade = Grade()
    grade.add(np.eye(classes)[chosen], labels, OutputKind("scores"), total)
    return grade


@pytest.mark.parametrize(
    ("right", "total", "classes", "chance"),
    [
        (2, 4, 2, False),  # bad luck of a good model is likely
        (1, 4, 4, False),
        (5, 10, 2, False),
        (0, 4, 4, True),  # no share of 0 can be held
        (16, 32, 2, True),
        (50, 100, 2, True),
        (65, 100, 2, False),  # poor, and better than guessing
        (1, 64, 100, True),
        (6, 64, 100, False),
        (500, 10_000, 20, True),
        (800, 10_000, 20, False),
        (4, 4, 2, False),
    ],
)
def test_few_samples_do_not_make_a_model_one_of_chance(
    right: int, total: int, classes: int, chance: bool
) -> None:
    assert graded(right, total, classes).is_chance() is chance


def test_a_model_that_always_answers_the_commonest_class_is_one_of_chance() -> None:
    labels = (np.arange(600) % 12 == 0).astype(np.int64)
    grade = Grade()
    grade.add(np.full((600, 1), -1.0), labels, OutputKind("logit"), 600)
    assert grade.guessing() == pytest.approx(11 / 12)
    assert grade.is_chance()


def test_the_binomial_tail() -> None:
    assert binomial_tail(0, 10, 0.5) == 1.0
    assert binomial_tail(10, 10, 0.5) == pytest.approx(2**-10)
    assert binomial_tail(6, 10, 0.5) == pytest.approx(386 / 1024)
    assert binomial_tail(3, 2, 0.5) == binomial_tail(1, 2, 0.0) == 0.0


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "is NaN in evaluation sample 37"), (np.inf, "is inf in")]
)
def test_an_answer_that_is_no_number_names_output_and_sample(value: float, said: str) -> None:
    broken = ROWS.copy()
    broken[37:, 2] = value
    with pytest.raises(EdgepackError) as caught:
        settle({"fine": ROWS, "broken": broken}, None)
    assert caught.value.code == "original-not-finite"
    assert "broken" in caught.value.what
    assert said in caught.value.what


def test_masked_scores_are_legitimate() -> None:
    masked = np.where(ROWS > 0.5, -np.inf, ROWS).astype(np.float32)
    masked[:, 0] = -np.inf
    (output,), _ = settle({"y": masked}, None)
    assert output.kind == "scores"


def test_an_output_of_nothing_but_masks_is_refused() -> None:
    with pytest.raises(EdgepackError) as caught:
        settle({"y": ROWS, "masked": np.full((COUNT, 3), -np.inf, np.float32)}, None)
    assert (caught.value.code, "masked" in caught.value.what) == ("original-not-finite", True)


@pytest.mark.parametrize(
    "answer",
    [
        np.ones((COUNT, 3), np.float32),
        np.ones((COUNT, 8, 8), np.int64),
        np.ones(COUNT, bool),
        np.tile(NORMAL[:1, 0], (COUNT, 1, 1)) * (1 + 3e-8 * ROWS[:, :1, None]).astype(np.float32),
    ],
)
def test_an_answer_that_no_sample_changes_proves_nothing(answer: np.ndarray) -> None:
    with pytest.raises(EdgepackError) as caught:
        settle({"y": answer}, None)
    assert caught.value.code == "original-constant"
    assert "'y'" in caught.value.what


def test_a_small_part_of_a_large_value_may_vary() -> None:
    settle({"y": (300 + 0.001 * ROWS[:, :1]).astype(np.float32)}, None)


def test_a_constant_beside_answers_that_vary_is_a_warning() -> None:
    survey = AnswerSurvey(lambda count: ["y", "scale"])
    survey.add([ROWS, np.ones(COUNT, np.float32)], None, COUNT)
    (warning,) = refuse_unprovable(survey.to_json(), ["y", "scale"], False)
    assert "'scale' is the same for every evaluation sample" in warning


def test_random_trials_may_be_constant() -> None:
    survey = AnswerSurvey(lambda count: ["y"])
    survey.add([np.ones(COUNT, np.int64)], None, COUNT)
    assert len(refuse_unprovable(survey.to_json(), ["y"], True)) == 1
