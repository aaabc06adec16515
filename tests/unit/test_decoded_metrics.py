"""Metrics of boxes, texts and scores beside those of scikit-learn, pycocotools and jiwer."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgepack.errors import DataError, MetricError, SpecError
from edgepack.metrics.answers import Answers, stack_numbers
from edgepack.metrics.catalogue import check_metrics, load_metric, load_metrics
from edgepack.metrics.chance import explain_chance
from edgepack.metrics.collect import Collector
from edgepack.metrics.digest import digest_function
from edgepack.metrics.postprocess import load_postprocess
from edgepack.metrics.protocol import TaskMetric
from edgepack.metrics.score import compute
from edgepack.metrics.texts import decode_greedy
from edgepack.metrics.values import pearson, spearman
from edgepack.runtime.tensor import Tensor

SCORES = (Tensor("scores", "float32", ("batch", 3), "scores"),)


def load(name: str, outputs: tuple[Tensor, ...] = SCORES, *, decoded: bool = False) -> Any:
    return load_metric(name, (Path(),), outputs, decoded).metric


def draw_boxes(seed: int) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Detections near labelled boxes, with misses, wrong classes and false alarms."""
    generator = np.random.default_rng(seed)
    labels = np.full((30, 5, 5), -1, np.float32)
    results = []
    for rows in labels:
        boxes, scores, kinds = [], [], []
        for row in range(generator.integers(0, 6)):
            corner, size = generator.uniform(0, 200, 2), generator.uniform(8, 150, 2)
            box = np.concatenate((corner, corner + size))
            rows[row] = (generator.integers(3), *box)
            boxes += [box + generator.normal(0, 6, 4), generator.uniform(0, 300, 4)]
            scores += generator.uniform(0, 1, 2).tolist()
            kinds += [rows[row, 0] if generator.uniform() < 0.8 else 2, 1]
        keep = generator.uniform(size=len(boxes)) < 0.9
        stacked = np.array(boxes, np.float32).reshape(-1, 4)[keep]
        stacked[:, 2:] = np.maximum(stacked[:, 2:], stacked[:, :2] + 1)
        results.append(
            {"boxes": stacked, "scores": np.array(scores)[keep], "labels": np.array(kinds)[keep]}
        )
    return results, labels


def run_pycocotools(
    results: list[dict[str, np.ndarray]], labels: np.ndarray, folder: Path
) -> float:
    """AP of files, as COCO's own users compute it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": kind, "name": str(kind)} for kind in range(3)]
    answers = []
    for image, (rows, result) in enumerate(zip(labels.tolist(), results, strict=True)):
        truth["images"].append({"id": image + 1, "width": 400, "height": 400})
        for kind, x1, y1, x2, y2 in rows:
            if kind >= 0:
                bbox, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
                number = len(truth["annotations"]) + 1
                entry = {"id": number, "image_id": image + 1, "category_id": int(kind)}
                truth["annotations"].append({**entry, "bbox": bbox, "area": area, "iscrowd": 0})
        columns = [np.asarray(result[key], float).tolist() for key in ("boxes", "scores", "labels")]
        for (x1, y1, x2, y2), score, kind in zip(*columns, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            entry = {"image_id": image + 1, "category_id": int(kind), "bbox": bbox}
            answers.append({**entry, "score": score})
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "answers.json").write_text(json.dumps(answers))
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(expected, expected.loadRes(str(folder / "answers.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_map_equals_that_of_pycocotools(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, labels = draw_boxes(seed)
    expected = run_pycocotools(results, labels, tmp_path)
    assert 0.1 < expected < 0.9
    assert load("map", decoded=True).compute(results, labels) == pytest.approx(expected, abs=1e-6)
    assert capsys.readouterr().out == ""


def test_map_of_exact_boxes_is_one_and_of_none_zero() -> None:
    _, labels = draw_boxes(0)
    exact, none = [], []
    for rows in labels:
        rows = rows[rows[:, 0] >= 0]
        exact.append({"boxes": rows[:, 1:], "scores": np.ones(len(rows)), "labels": rows[:, 0]})
        none.append({"boxes": [], "scores": [], "labels": []})
    assert load("map", decoded=True).compute(exact, labels) == pytest.approx(1.0)
    assert load("map", decoded=True).compute(none, labels) == 0.0
    assert math.isnan(load("map", decoded=True).compute(none, np.full_like(labels, -1)))


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ([1, 2], "result of picture 0 is list"),
        ({"boxes": [], "scores": []}, r"is \['boxes', 'scores'\]"),
        ({"boxes": np.zeros((2, 4)), "scores": [1], "labels": [0]}, r"boxes \(2, 4\), scores \(1,"),
        ({"boxes": [[0, 0, 1, np.nan]], "scores": [1], "labels": [0]}, "not finite"),
    ],
)
def test_results_that_are_no_boxes_are_refused(result: object, why: str) -> None:
    with pytest.raises(MetricError, match=why) as caught:
        load("map", decoded=True).compute([result], np.zeros((1, 1, 5)))
    assert caught.value.code == "metric-shape"


def test_error_rates_equal_those_of_jiwer() -> None:
    import jiwer

    labels = ["the cat sat", "on a mat", "3141"]
    answers = ["the cat sits", "on mat", "3141"]
    for name in ("cer", "wer"):
        metric = load(name, decoded=True)
        assert metric.compute(answers, np.array(labels)) == getattr(jiwer, name)(labels, answers)
    # One edit of three words in the first, one of three in the second.
    assert load("wer", decoded=True).compute(answers, np.array(labels)) == pytest.approx(2 / 7)
    with pytest.raises(MetricError, match="answer 1 is int"):
        load("cer", decoded=True).compute(["a", 1], np.array(["a", "b"]))


def test_scores_of_ctc_are_decoded_by_the_class_names() -> None:
    # Steps a a blank a b b of the classes blank, a, b.
    scores = np.eye(3)[[[1, 1, 0, 1, 2, 2]]]
    assert decode_greedy(scores, ("", "a", "b")) == decode_greedy(scores, ("a", "b")) == ["aab"]
    tasks = load_metrics(("cer",), (), SCORES, class_names=("a", "b"))
    assert tasks[0].metric.compute([scores], np.array(["aab"])) == 0
    with pytest.raises(SpecError) as caught:
        load_metrics(("cer",), (), SCORES)
    assert caught.value.code == "metric-needs-postprocess"


def test_areas_equal_those_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    scores = generator.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels]
    softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = roc_auc_score(labels, softmax, multi_class="ovr")
    for answers in (scores, softmax):
        assert load("auroc").compute([answers], labels) == pytest.approx(expected, rel=1e-12)
    # Two classes, one logit, and several logits of one sample.
    binary = (labels == 1).astype(int)
    two = roc_auc_score(binary, scores[:, 1] - scores[:, 0])
    assert load("auroc").compute([scores[:, :2]], binary) == pytest.approx(two)
    logit = (Tensor("y", "float32", ("batch",), "logit"),)
    one = load("auroc", logit).compute([scores[:, 1]], binary)
    assert one == pytest.approx(roc_auc_score(binary, scores[:, 1]))
    several = (Tensor("y", "float32", ("batch", 3), "logit"),)
    columns = np.eye(3, dtype=int)[labels]
    many = load("auroc", several).compute([scores], columns)
    assert many == pytest.approx(roc_auc_score(columns, scores, average="macro"))


def test_correlations_of_dense_maps_take_seconds_at_most() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(20, 256 * 256)).astype("f4")
    answers = labels + generator.normal(size=labels.shape).astype("f4")
    started = time.process_time()
    assert pearson(answers, labels) == pytest.approx(0.7, abs=0.02)
    assert spearman(answers, labels) == pytest.approx(0.67, abs=0.02)
    assert time.process_time() - started < 5


def test_values_with_constant_labels_do_not_count() -> None:
    answers, labels = np.array([[1.0, 5], [2, 6], [3, 4]]), np.array([[1.0, 7], [2, 7], [3, 7]])
    assert pearson(answers, labels) == pytest.approx(1.0)
    assert math.isnan(spearman(answers, np.full_like(labels, 7)))
    assert math.isnan(pearson(np.array([[np.nan], [1.0]]), np.array([[1.0], [2.0]])))


@pytest.mark.parametrize("name", ["cosine", "pearson", "spearman", "agreement"])
def test_without_labels_similarities_compare_with_the_original(name: str) -> None:
    (task,) = load_metrics((name,), (), SCORES, labelled=False)
    original = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    other = original + np.random.default_rng(1).normal(size=(40, 3)).astype("f4")
    assert task.against_original
    labels = Answers([original])
    assert compute(task, Answers([original]), labels, "x") == pytest.approx(1.0)
    worse = compute(task, Answers([other]), labels, "x")
    assert 0.2 < worse < 0.95


def test_other_metrics_need_labels(tmp_path: Path) -> None:
    for name in ("rmse", "f1", "auroc", "accuracy"):
        with pytest.raises(SpecError) as caught:
            load_metrics((name,), (), SCORES, labelled=False)
        assert caught.value.code == "metric-needs-labels"


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(SpecError) as caught:
        check_metrics(("f1", "own.py:f1"))
    assert caught.value.code == "metric-repeated"


class Mean:
    """A metric in the form of torchmetrics."""

    higher_is_better = False

    def __init__(self) -> None:
        self.reset()

    def __eq__(self, other: object) -> Any:
        return Mean()

    def __hash__(self) -> int:
        return id(self)

    def reset(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.total = self.total + (preds[:, 0] - target).abs().sum()
        self.count += len(target)

    def compute(self) -> torch.Tensor:
        return self.total / self.count


def test_a_function_and_an_object_of_torchmetrics_are_metrics() -> None:
    def worst(outputs: list[np.ndarray], labels: np.ndarray) -> float:
        return float(np.abs(outputs[0][:, 0] - labels).max())

    worst.higher_is_better = False  # type: ignore[attr-defined]
    answers, labels = Answers([np.arange(100, dtype="f4")[:, None]]), np.zeros(100, "f4")
    # Metrics of torchmetrics are equal to everything.
    assert [task.name for task in load_metrics((Mean(),), (), SCORES)] == ["Mean"]
    tasks = load_metrics(("f1", worst, Mean()), (), SCORES)
    assert [task.name for task in tasks] == ["f1", "worst", "Mean"]
    for _ in range(2):
        assert compute(tasks[1], answers, labels, "x") == 99
        assert compute(tasks[2], answers, labels, "x") == pytest.approx(49.5)
    # What surrounds a live object is in no file, so that no later build may use its results.
    assert tasks[1].digest != load_metric(worst, (), SCORES).digest
    with pytest.raises(MetricError, match="does not state whether higher is better"):
        load_metric(lambda outputs, labels: 1.0, (), SCORES)


def test_the_digest_of_a_function_covers_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(o, l):\n    import helper\n    return helper.x()\n")
    (tmp_path / "helper.py").write_text("from parts.inner import x\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "inner.py").write_text("from . import deep\n\ndef x():\n    return 1\n")
    (tmp_path / "parts" / "deep.py").write_text("")
    (tmp_path / "other.py").write_text("")
    from edgepack.data.python.function import load_function

    function = load_function("own.py:f", [tmp_path])
    digests = [digest_function(function)]
    for name in ("helper.py", "parts/inner.py", "parts/deep.py", "other.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        digests.append(digest_function(function))
    assert len(set(digests[:4])) == 4
    assert digests[4] == digests[3]


POSTPROCESS = """
import numpy as np


def texts(outputs):
    return ["".join(map(str, row)) for row in outputs["y"].argmax(-1)]


def numbers(outputs):
    outputs["y"] *= 2
    return list(outputs["y"].sum(axis=(1, 2)))


def short(outputs):
    return [1]


def broken(outputs):
    return outputs["z"]
"""


def decode(folder: Path, name: str, takes: str = "results") -> Any:
    (folder / "post.py").write_text(POSTPROCESS)
    postprocess = load_postprocess(f"post.py:{name}", (folder,), ("y",))
    with Collector() as collector:
        for size in (2, 3):
            collector.add([np.eye(4, dtype="f4")[:3][None].repeat(size, 0)], size)
        return Answers(collector.arrays(), collector.batches, postprocess).select(takes)


def test_a_postprocess_decodes_batch_by_batch(tmp_path: Path) -> None:
    assert decode(tmp_path, "texts") == ["012"] * 5
    (array,) = decode(tmp_path, "numbers", "numbers")
    assert array.tolist() == [6.0] * 5
    assert decode(tmp_path, "texts", "numbers")[0].shape == (5, 3, 4)
    assert stack_numbers([np.zeros(2), np.zeros(3)]) is None


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("short", "postprocess-result", "list of 1 for 2 samples"),
        ("broken", "postprocess-failed", "KeyError: 'z'"),
        ("absent", "postprocess-import", "no function absent"),
    ],
)
def test_a_postprocess_that_fails_is_named(tmp_path: Path, name: str, code: str, why: str) -> None:
    with pytest.raises(MetricError) as caught:
        decode(tmp_path, name)
    assert caught.value.code == code
    assert why in caught.value.why
    assert name in caught.value.what


@pytest.mark.parametrize(
    ("name", "value", "count", "chance"),
    [
        ("pearson", 0.05, 200, True),
        ("pearson", 0.3, 200, False),
        # A few samples prove neither.
        ("spearman", 0.1, 10, False),
        ("auroc", 0.52, 200, True),
        ("auroc", 0.8, 200, False),
        ("map", 0.004, 50, True),
        ("map", 0.3, 50, False),
        ("cer", 1.2, 50, True),
        ("wer", 0.4, 50, False),
        ("rmse", 9.0, 50, False),
    ],
)
def test_an_original_at_chance_is_told(name: str, value: float, count: int, chance: bool) -> None:
    labels: Mapping[str, np.ndarray] = {"auroc": np.arange(count) % 2}
    answers = Answers([np.zeros(count)])
    reason = explain_chance(
        TaskMetric(load(name, decoded=True), name),
        value,
        labels.get(name, np.arange(count)),
        answers,
    )
    assert bool(reason) is chance
    if chance:
        assert f"{value:.4g} on {count} samples" in reason


def test_texts_of_different_lengths_are_collected_whole() -> None:
    with Collector() as labels:
        labels.add([np.array(["ab", "c"])], 2)
        labels.add([np.array(["a longer text"])], 1)
        (array,) = labels.arrays()
    assert array.tolist() == ["ab", "c", "a longer text"]


def test_bytes_are_no_labels() -> None:
    from edgepack.data.fit import check_labels, plain_texts

    assert plain_texts(np.array(["a", "bcd"], dtype=object)).dtype == "<U3"
    with pytest.raises(DataError, match="neither numbers nor texts"):
        check_labels(np.array([b"a"]), 1, "x")
