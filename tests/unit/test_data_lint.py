"""What lint finds in samples that can be fed, and what it records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Samples, open_samples
from edgepack.data.lint import LintReport, lint
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

X = (Tensor("x", "float32", ("batch", 3, 5)),)


def drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 5)).astype(np.float32)


def saved(path: Path, x: np.ndarray, labels: np.ndarray | None = None) -> Samples:
    if labels is None:
        np.savez(path, x=x)
    else:
        np.savez(path, x=x, labels=labels)
    return open_samples(str(path), X)


def test_good_samples_give_figures_and_no_warning(tmp_path: Path) -> None:
    ours, theirs = drawn(120, 0), drawn(50, 1)
    report = lint(
        saved(tmp_path / "c.npz", x=ours),
        saved(tmp_path / "e.npz", x=theirs, labels=np.arange(50)),
        X,
    )
    assert report.warnings == ()
    assert report.counts == {"calibration": 120, "evaluation": 50}
    found = report.statistics["calibration"]["x"]
    assert (found.minimum, found.maximum) == (ours.min(), ours.max())
    assert found.mean == pytest.approx(ours.mean(dtype=np.float64), abs=1e-12)
    assert found.std == pytest.approx(ours.std(dtype=np.float64), rel=1e-12)
    assert json.loads(json.dumps(report.to_json()))["counts"]["evaluation"] == 50


def digest(path: Path, x: np.ndarray, labels: np.ndarray | None = None) -> str:
    return lint(None, saved(path, x, labels), X).digests["evaluation"]


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    values, labels = drawn(40, 0), np.arange(40)
    first = digest(tmp_path / "a.npz", x=values, labels=labels)
    assert len(first) == 64
    assert digest(tmp_path / "b.npz", x=values, labels=labels) == first
    (tmp_path / "shards").mkdir()
    for index, part in enumerate(np.split(np.arange(40), [7, 8, 30])):
        np.savez_compressed(
            tmp_path / "shards" / f"{index}.npz", x=values[part], labels=labels[part]
        )
    shards = open_samples(str(tmp_path / "shards"), X)
    assert lint(None, shards, X).digests["evaluation"] == first
    others = [
        digest(tmp_path / "c.npz", x=values[::-1].copy(), labels=labels),
        digest(tmp_path / "d.npz", x=values, labels=labels + 1),
        digest(tmp_path / "e.npz", x=values),
        digest(tmp_path / "f.npz", x=np.nextafter(values, np.float32(9)), labels=labels),
    ]
    assert len({first, *others}) == 5


def test_few_calibration_samples(tmp_path: Path) -> None:
    report = lint(saved(tmp_path / "c.npz", x=drawn(99, 0)), None, X)
    assert "99 calibration samples; at least 100" in warning(report)


def test_a_constant_input(tmp_path: Path) -> None:
    report = lint(None, saved(tmp_path / "c.npz", x=np.full((9, 3, 5), 7, np.float32)), X)
    assert any("x is 7 everywhere" in text for text in report.warnings)


def test_raw_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 3, 5)).astype(np.float32)
    report = lint(saved(tmp_path / "c.npz", x=pixels), saved(tmp_path / "e.npz", x=drawn(50, 1)), X)
    assert any("whole numbers, 0 to 255" in text for text in report.warnings)
    assert any("another range for calibration" in text for text in report.warnings)


def test_a_mean_that_is_elsewhere(tmp_path: Path) -> None:
    report = lint(
        saved(tmp_path / "c.npz", x=drawn(120, 0)), saved(tmp_path / "e.npz", x=drawn(9, 1) + 5), X
    )
    assert "another range for calibration" in warning(report)


def test_duplicates_inside_and_between(tmp_path: Path) -> None:
    values = drawn(120, 0)
    ours = np.concatenate([values, values[:3]])
    theirs = np.concatenate([values[10:14], drawn(20, 1)])
    report = lint(saved(tmp_path / "c.npz", x=ours), saved(tmp_path / "e.npz", x=theirs), X)
    assert report.warnings == (
        "3 of 123 calibration samples repeat an earlier one",
        "4 sample(s) are in both sets: quality measured on calibration samples is optimistic",
    )


def test_what_does_not_fill_a_fixed_batch(tmp_path: Path) -> None:
    fixed = (Tensor("x", "float32", (8, 3, 5)),)
    np.savez(tmp_path / "c.npz", x=drawn(123, 0))
    report = lint(open_samples(str(tmp_path / "c.npz"), fixed), None, fixed)
    assert report.counts == {"calibration": 123}
    assert "3 calibration sample(s) at the end are dropped" in warning(report)


def test_widening_is_noted(tmp_path: Path) -> None:
    ids = (Tensor("ids", "int64", ("batch", 3)),)
    np.savez(tmp_path / "a.npz", ids=np.arange(30, dtype=np.int16).reshape(10, 3))
    report = lint(None, open_samples(str(tmp_path / "a.npz"), ids), ids)
    assert report.notes == ("ids is widened from int16 to int64.",)


def warning(report: LintReport) -> str:
    assert len(report.warnings) == 1
    return report.warnings[0]


def test_training_samples_must_not_judge(tmp_path: Path) -> None:
    """A few shared samples give a warning; a set that was never split is refused."""
    theirs, ours = drawn(200, 1), drawn(300, 2)
    evaluation = saved(tmp_path / "e.npz", x=theirs)
    apart = lint(None, evaluation, X, training=saved(tmp_path / "t.npz", x=ours))
    assert apart.warnings == ()
    assert apart.counts == {"evaluation": 200, "training": 300}
    assert len(apart.digests["training"]) == 64
    ours[:2] = theirs[7]
    few = lint(None, evaluation, X, training=saved(tmp_path / "few.npz", x=ours))
    assert "1 of 200 evaluation samples are also training samples" in few.warnings[-1]
    ours[:3] = theirs[:3]
    with pytest.raises(DataError) as caught:
        lint(None, evaluation, X, training=saved(tmp_path / "many.npz", x=ours))
    assert caught.value.code == "samples-training-judges"


def test_training_samples_may_calibrate(tmp_path: Path) -> None:
    ours = drawn(300, 2)
    report = lint(
        saved(tmp_path / "c.npz", x=ours[:150]),
        saved(tmp_path / "e.npz", x=drawn(200, 1)),
        X,
        training=saved(tmp_path / "t.npz", x=ours),
    )
    assert report.warnings == ()


def test_training_samples_in_another_range(tmp_path: Path) -> None:
    evaluation = saved(tmp_path / "e.npz", x=drawn(200, 1))
    training = saved(tmp_path / "t.npz", x=drawn(200, 2) * 50)
    report = lint(None, evaluation, X, training=training)
    assert "another range for training" in report.warnings[-1]


def test_some_training_samples_without_a_label(tmp_path: Path) -> None:
    labels = np.full(300, -1)
    labels[:9] = 3
    training = saved(tmp_path / "t.npz", drawn(300, 2), labels)
    evaluation = saved(tmp_path / "e.npz", x=drawn(200, 1))
    assert lint(None, evaluation, X, training=training).warnings == ()
