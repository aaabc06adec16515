"""Mean average precision of detected boxes, as COCO defines it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from edgepack.errors import MetricError

# Class of the rows that pad the labels of pictures with fewer boxes than others.
PADDING = -1


@dataclass(frozen=True)
class BoxMetric:
    """Average precision over the IoU thresholds 0.50 to 0.95, averaged over the classes.

    The results of the postprocess are dicts of arrays: `boxes` (n, 4) as x1, y1, x2, y2, `scores`
    (n,) and `labels` (n,). The labels of a picture are rows of class, x1, y1, x2, y2, padded with
    rows of class -1. Lin et al., Microsoft COCO (2014).

    Attributes:
        name: name on the command line.
        higher_is_better: True.
    """

    name: str = "map"
    higher_is_better: bool = True

    def compute(self, outputs: Sequence[object], labels: np.ndarray) -> float:
        """Return AP of `pycocotools.cocoeval.COCOeval` for boxes; NaN without labelled boxes.

        Raises MetricError `metric-shape` if results or labels have another form.
        """
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if len(outputs) != len(labels):
            raise _misfit(f"{len(labels)} labels for {len(outputs)} results of the postprocess")
        truth, answers = _list_truth(labels), _list_answers(outputs)
        if not truth["annotations"]:
            return float("nan")
        # The library prints tables of its own.
        with contextlib.redirect_stdout(io.StringIO()):
            expected = COCO()
            expected.dataset = truth
            expected.createIndex()
            # `loadRes` takes an empty list for an error.
            if not answers:
                return 0.0
            evaluation = COCOeval(expected, expected.loadRes(answers), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])


def _list_truth(labels: np.ndarray) -> dict[str, list[dict[str, object]]]:
    """Return labelled boxes as a document of COCO, with the pictures numbered from 1."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    classes = set()
    for number, rows in enumerate(labels, start=1):
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != 5:
            raise _misfit(f"the labels of picture {number - 1} have the shape {rows.shape}")
        images.append({"id": number})
        for label, *corners in rows[rows[:, 0] != PADDING].tolist():
            classes.add(int(label))
            annotation = _describe_box(number, int(label), corners)
            # COCO numbers annotations from 1, and takes 0 for unmatched.
            annotation.update(id=len(annotations) + 1, iscrowd=0)
            annotations.append(annotation)
    categories: list[dict[str, object]] = [{"id": label} for label in sorted(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _list_answers(results: Sequence[object]) -> list[dict[str, object]]:
    """Return detected boxes as COCO's results."""
    answers = []
    for number, result in enumerate(results, start=1):
        boxes, scores, labels = _read_result(result, number - 1)
        for corners, score, label in zip(boxes, scores, labels, strict=True):
            answer = _describe_box(number, int(label), corners.tolist())
            answers.append({**answer, "score": float(score)})
    return answers


def _read_result(result: object, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = ("boxes", "scores", "labels")
    if not isinstance(result, Mapping) or not set(keys) <= set(result):
        content = sorted(result) if isinstance(result, Mapping) else type(result).__name__
        raise _misfit(f"the result of picture {number} is {content}")
    arrays = cast("Mapping[str, object]", result)
    boxes, scores, labels = (np.asarray(arrays[key], dtype=np.float64) for key in keys)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.shape != (scores.size, 4) or scores.size != labels.size:
        raise _misfit(
            f"the result of picture {number} has boxes {boxes.shape}, scores {scores.shape} and "
            f"labels {labels.shape}"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise _misfit(f"the result of picture {number} holds values that are not finite")
    return boxes, scores.ravel(), labels.ravel()


def _describe_box(number: int, label: int, corners: Sequence[float]) -> dict[str, object]:
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    return {
        "image_id": number,
        "category_id": label,
        "bbox": [left, top, width, height],
        "area": width * height,
    }


def _misfit(why: str) -> MetricError:
    return MetricError(
        "metric-shape",
        "the results or the labels are not boxes, as the metric map needs them",
        why=why,
        hint="the postprocess returns a dict of boxes (n, 4), scores (n,) and labels (n,) for each "
        "sample; labels are rows of class, x1, y1, x2, y2, padded with rows of class -1",
    )
