"""Task metrics that the build host computes: formulas, batches, and refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.errors import EdgepackError, InputError, MetricError
from edgepack.metrics.answers import Answers
from edgepack.metrics.catalogue import (
    BUILT_IN,
    check_metric,
    list_names,
    load_metric,
    load_metrics,
)
from edgepack.metrics.classes import CLASS_METRICS
from edgepack.metrics.collect import Collector
from edgepack.metrics.direction import doubt_direction
from edgepack.metrics.protocol import Metric, TaskMetric
from edgepack.metrics.score import compare_scores, compute, compute_steady
from edgepack.metrics.values import VALUE_METRICS
from edgepack.report.findings import describe_metric
from edgepack.runtime.documents import MetricResult
from edgepack.runtime.parity.gates import judge
from edgepack.runtime.tensor import Tensor

# Metrics of numbers and of classes, whose answers need no postprocess.
LABELLED = [*(m.name for m in VALUE_METRICS), *(m.name for m in CLASS_METRICS)]
SCORES = (Tensor("scores", "float32", ("batch", 3), "scores"),)


def load(name: str, outputs: Sequence[Tensor] = SCORES) -> Metric:
    return load_metric(name, (Path(),), outputs).metric


def measure(name: str, answers: Any, labels: Any, outputs: Sequence[Tensor] = SCORES) -> float:
    return load(name, outputs).compute([np.asarray(answers)], np.asarray(labels))


@pytest.mark.parametrize(
    ("name", "answers", "labels", "expected"),
    [
        ("mae", [[1.0], [2.0], [4.0]], [1, 4, 1], 5 / 3),
        ("rmse", [[1.0], [2.0], [4.0]], [1, 4, 1], math.sqrt(13 / 3)),
        ("mae", [[1.0, 2.0], [3.0, 4.0]], [[1, 2], [3, 0]], 1.0),
        # r = 8 / sqrt(10 * 10), of deviations (-2, -1, 0, 1, 2) and (-1, -2, 0, 2, 1).
        ("pearson", [1.0, 2, 3, 4, 5], [2.0, 1, 3, 5, 4], 0.8),
        ("pearson", [[1.0, 3], [2, 2], [3, 1]], [[1.0, 1], [2, 2], [3, 3]], 0.0),
        ("pearson", [7.0, 7.0, 7.0], [1.0, 2.0, 3.0], 0.0),
        # Only the order counts; 1 - 6 * (1 + 1) / (4 * 15) by Spearman's own formula.
        ("spearman", [1.0, 10, 100, 1000], [1.0, 3, 2, 4], 0.8),
        # Ranks 1.5, 1.5, 3 and 1, 2, 3.
        ("spearman", [1.0, 1, 2], [1.0, 2, 3], 1.5 / math.sqrt(1.5 * 2)),
        ("cosine", [[3.0, 4], [1, 0], [0, 0]], [[3.0, 4], [0, 2], [1, 1]], 1 / 3),
    ],
)
def test_metrics_of_values_equal_hand_computed_ones(
    name: str, answers: Any, labels: Any, expected: float
) -> None:
    assert measure(name, answers, labels) == pytest.approx(expected, abs=1e-12)


def test_metrics_of_classes_equal_hand_computed_ones() -> None:
    # Decisions 0, 0, 1, 2, 2 against labels 0, 1, 1, 2, 0:
    # class 0: TP 1, FP 1, FN 1; class 1: TP 1, FN 1; class 2: TP 1, FP 1.
    scores = np.eye(3, dtype="f4")[[0, 0, 1, 2, 2]]
    labels = [0, 1, 1, 2, 0]
    assert measure("f1", scores, labels) == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert measure("miou", scores, labels) == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)


def test_maps_leave_out_positions_without_a_label() -> None:
    maps = (Tensor("map", "float32", ("batch", 2, 2, 2), "scores", 1),)
    # One picture decides [[0, 1], [1, 1]]; its last position has no label.
    decided = np.array([[[0, 1], [1, 1]]])
    scores = np.moveaxis(np.eye(2, dtype="f4")[decided], -1, 1)
    labels = np.array([[[0, 1], [0, 255]]])
    assert measure("miou", scores, labels, maps) == pytest.approx(0.5)
    with pytest.raises(InputError, match="is not one of the model's classes"):
        measure("miou", scores, np.array([[[0, 1], [0, 7]]]), maps)


def test_nan_is_a_wrong_decision_of_no_class() -> None:
    scores = np.array([[1, 0, 0], [np.nan, 0, 0]], "f4")
    assert measure("f1", scores, [0, 0]) == pytest.approx(2 / 3)


def test_formulas_equal_those_of_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    labels = generator.normal(size=300)
    answers = labels + generator.normal(size=300)
    classes, decided = generator.integers(0, 3, (2, 300))
    scores = np.eye(3)[decided]
    expected = {
        "mae": reference.mean_absolute_error(labels, answers),
        "rmse": math.sqrt(reference.mean_squared_error(labels, answers)),
        "f1": reference.f1_score(classes, decided, average="macro"),
        "miou": reference.jaccard_score(classes, decided, average="macro"),
    }
    for name in ("mae", "rmse"):
        assert measure(name, answers, labels) == pytest.approx(expected[name], rel=1e-12)
    for name in ("f1", "miou"):
        assert measure(name, scores, classes) == pytest.approx(expected[name], rel=1e-12)


def test_correlations_equal_those_of_scipy() -> None:
    reference = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 20, 300).astype(float)
    answers = labels + generator.integers(0, 20, 300)
    pearson, spearman = reference.pearsonr(answers, labels), reference.spearmanr(answers, labels)
    assert measure("pearson", answers, labels) == pytest.approx(pearson.statistic, rel=1e-12)
    assert measure("spearman", answers, labels) == pytest.approx(spearman.statistic, rel=1e-12)


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_labels_that_fit_no_output_are_refused(name: str) -> None:
    values = (Tensor("y", "float32", ("batch", 2)),)
    with pytest.raises(MetricError) as caught:
        measure(name, np.zeros((4, 2)), np.zeros((4, 5)), values)
    assert caught.value.code == "metric-shape"
    assert name in caught.value.what


def test_the_first_output_of_the_labels_shape_is_measured() -> None:
    outputs = [np.zeros((4, 7)), np.ones((4, 2)), np.zeros((4, 2))]
    assert load("mae").compute(outputs, np.ones((4, 1, 2))) == 0.0


@pytest.mark.parametrize("block", [1, 3, 64])
def test_batches_give_the_same_as_one_array(block: int) -> None:
    generator = np.random.default_rng(0)
    answers, labels = generator.normal(size=(2, 50, 4)).astype("f4")
    with Collector() as outputs:
        for start in range(0, 50, block):
            rows = answers[start : start + block]
            outputs.add([rows, rows.argmax(1)], len(rows))
        collected, best = outputs.arrays()
        np.testing.assert_array_equal(collected, answers)
        np.testing.assert_array_equal(best, answers.argmax(1))
        assert not collected.flags.writeable
        assert load("rmse").compute([collected], labels) == measure("rmse", answers, labels)


def test_samples_of_different_sizes_are_an_array_of_arrays() -> None:
    with Collector() as outputs:
        # Two batches of padded tokens, and the boxes of one picture each.
        outputs.add([np.zeros((2, 7)), np.ones((5, 4))], 2)
        outputs.add([np.zeros((1, 9)), np.ones((2, 4))], 1)
        tokens, boxes = outputs.arrays()
        assert [row.shape for row in tokens] == [(7,), (7,), (9,)]
        assert [box.shape for box in boxes] == [(5, 4), (2, 4)]
        with pytest.raises(ValueError, match="read-only"):
            tokens[0] = None


def test_outputs_without_an_axis_of_samples_are_stacked() -> None:
    with Collector() as outputs:
        for value in (1.0, 2.0):
            outputs.add([np.float32(value), np.empty((4, 0))], 4)
        scalars, empty = outputs.arrays()
        assert (scalars.tolist(), empty.shape) == ([1.0, 2.0], (8, 0))


def user_metric(
    folder: Path, body: str, direction: str = "metric.higher_is_better = False"
) -> TaskMetric:
    text = f"import numpy as np\n\nSTATE = []\n\n\ndef metric(outputs, labels):\n    {body}\n"
    (folder / "user.py").write_text(f"{text}\n\n{direction}\n")
    return load_metric("user.py:metric", (folder,), SCORES)


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        ("return 1 / 0", "metric-failed", "ZeroDivisionError: division by zero"),
        ("outputs[0][:] = 0", "metric-failed", "read-only"),
        ("return None", "metric-result", "NoneType"),
        ("return True", "metric-result", "bool"),
        ("return 'good'", "metric-result", "str"),
        ("return outputs[0][:, 0]", "metric-result", "ndarray"),
        ("return float('nan')", "metric-not-finite", "float32 (2, 3)"),
        ("return np.float32('inf')", "metric-not-finite", "float32 (2, 3)"),
        ("STATE.append(1); return len(STATE)", "metric-unsteady", "1.0, then 2.0"),
    ],
)
def test_a_value_that_bounds_nothing_is_one_clear_error(
    tmp_path: Path, body: str, code: str, why: str
) -> None:
    task = user_metric(tmp_path, body)
    with Collector() as outputs:
        outputs.add([np.ones((2, 3), "f4")], 2)
        pair = Answers(outputs.arrays()), Answers(outputs.arrays())
        with pytest.raises(MetricError) as caught:
            compute_steady(task, pair, np.zeros(2), "the original")
    assert caught.value.code == code
    assert why in caught.value.why
    assert "the metric metric" in caught.value.what


@pytest.mark.parametrize("body", ["return np.float32(0.5)", "return np.array([0.5])", "return 0.5"])
def test_numbers_of_numpy_are_numbers(tmp_path: Path, body: str) -> None:
    task = user_metric(tmp_path, body)
    assert compute(task, Answers([np.ones((2, 3))]), np.zeros(2), "the original") == 0.5


@pytest.mark.parametrize(
    ("body", "higher", "doubted"),
    [
        ("(o[0].argmax(1) != y).mean()", True, True),
        ("(o[0].argmax(1) != y).mean()", False, False),
        ("(o[0].argmax(1) == y).mean()", True, False),
        ("(o[0].argmax(1) == y).mean()", False, True),
        # Neither reads which label belongs to which sample.
        ("abs(o[0].max(1).mean() - y.mean())", True, False),
        ("abs(o[0].max(1).mean() - y.mean())", False, False),
        # This one fits no labels but its own.
        ("1 / int((o[0].argmax(1) == y).all())", True, False),
    ],
)
def test_a_metric_that_likes_the_labels_of_others_is_doubted(
    tmp_path: Path, body: str, higher: bool, doubted: bool
) -> None:
    (tmp_path / "m.py").write_text(
        f"def f(o, y):\n    return float({body})\nf.higher_is_better = {higher}\n"
    )
    task = load_metric("m.py:f", (tmp_path,), SCORES)
    labels = np.arange(60) % 3
    answers = Answers([np.eye(3, dtype=np.float32)[labels]])
    value = compute(task, answers, labels, "the original")
    assert bool(doubt_direction(task, value, labels, answers)) == doubted


def test_a_function_states_the_direction(tmp_path: Path) -> None:
    assert user_metric(tmp_path, "return 1.0").metric.higher_is_better is False
    for direction in ("", "metric.higher_is_better = 1"):
        with pytest.raises(MetricError) as caught:
            user_metric(tmp_path, "return 1.0", direction)
        assert caught.value.code == "metric-direction"
        assert "metric.higher_is_better = False" in caught.value.hint


def test_a_function_without_a_name_gets_a_hint_that_can_be_typed() -> None:
    with pytest.raises(MetricError) as caught:
        load_metric(lambda outputs, labels: 1.0, (), SCORES)
    assert caught.value.code == "metric-direction"
    assert "<lambda>" not in caught.value.hint


@pytest.mark.parametrize("name", ["F1", "Spearman", "MAE"])
def test_a_metric_in_capitals_is_recognised(name: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        check_metric(name)
    assert f"did you mean {name.lower()}?" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("absent.py:metric", "metric-import"),
        ("user.py:absent", "metric-import"),
        ("user.py:top1", "metric-name"),
        ("no.such.module:metric", "metric-import"),
    ],
)
def test_a_function_that_cannot_be_used_is_named(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "user.py").write_text("def top1(outputs, labels):\n    return 1.0\n")
    with pytest.raises(MetricError) as caught:
        load_metric(text, (tmp_path,), SCORES)
    assert caught.value.code == code
    assert text in caught.value.what


def test_names_of_metrics() -> None:
    assert list_names()[:2] == ("top1", "top5")
    for name in (*list_names(), "", "any.py:function"):
        check_metric(name)
    assert load_metrics(("top5",), (), SCORES) == ()
    with pytest.raises(EdgepackError, match="there is no metric named 'bleu'"):
        check_metric("bleu")


def scores(name: str, original: float, model: float) -> MetricResult:
    return compare_scores(TaskMetric(BUILT_IN[name], name), original, model, 500)


@pytest.mark.parametrize(
    ("name", "original", "model", "ratio", "drop"),
    [
        ("pearson", 0.8, 0.76, 0.95, 4.0),
        ("pearson", 0.8, -0.4, -0.5, 120.0),
        # Of an error the ratio is turned over, and a growth is a drop.
        ("rmse", 0.20, 0.25, 0.8, 5.0),
        ("rmse", 0.25, 0.20, 1.25, -5.0),
        ("rmse", 0.25, 0.0, 1.0, -25.0),
    ],
)
def test_gates_of_a_metric_in_both_directions(
    name: str, original: float, model: float, ratio: float, drop: float
) -> None:
    result = scores(name, original, model)
    assert result["drop_points"] == pytest.approx(drop)
    for gate, bound, passes in (
        ("metric_ratio", ratio - 0.01, True),
        ("metric_ratio", ratio + 0.01, False),
        ("max_drop", drop + 0.01, True),
        ("max_drop", drop, True),
        ("max_drop", drop - 0.01, False),
    ):
        (row,) = judge({gate: bound}, {}, result)
        assert (row["name"], row["output"], row["passed"]) == (gate, name, passes)


def test_no_miss_is_allowed_for_what_is_not_counted() -> None:
    """A share of 500 samples may lose 5 at 99 %; a correlation may not."""
    bounds = {"metric_ratio": 0.99}
    assert not judge(bounds, {}, scores("pearson", 0.9, 0.8909))[0]["passed"]
    assert judge(bounds, {}, scores("pearson", 0.9, 0.8911))[0]["passed"]


@pytest.mark.parametrize(
    ("name", "original", "model", "text"),
    [
        ("rmse", 2.513, 2.604, "rmse 2.513 → 2.604, 0.091 worse on 500 samples"),
        ("rmse", 0.25, 0.2, "rmse 0.25 → 0.2, 0.05 better on 500 samples"),
        ("pearson", 0.9, 0.9, "pearson 0.9 → 0.9, no change on 500 samples"),
        ("f1", 0.9, 0.88, "f1 90.0 % → 88.0 %, 2.00 points lost on 500 samples"),
    ],
)
def test_the_report_writes_a_metric_in_its_own_unit(
    name: str, original: float, model: float, text: str
) -> None:
    question: Any = {"metric": scores(name, original, model), "samples": 500}
    assert describe_metric(question) == text


def test_every_built_in_metric_cites_what_it_equals() -> None:
    libraries = ("sklearn.metrics.", "scipy.stats.", "pycocotools.", "jiwer.")
    for name, metric in BUILT_IN.items():
        formula = getattr(metric, "measure", metric.compute)
        documentation = formula.__doc__ or ""
        assert name == "agreement" or any(map(documentation.__contains__, libraries)), name
