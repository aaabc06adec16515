"""Outputs divided into parts of one scale, and the signal of each."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.metrics.parts import MAX_ELEMENTS, find_parts
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.tensor import Tensor


def labels(shape: tuple[int | str, ...], answers: np.ndarray) -> list[str]:
    return [part.label for part in find_parts(Tensor("y", "float32", shape), [answers])]


def snr(shape: tuple[int | str, ...], original: np.ndarray, measured: np.ndarray) -> float:
    tensor = Tensor("y", "float32", shape)
    parity = Parity(tensor, find_parts(tensor, [original]))
    parity.update(original.astype(np.float32), measured.astype(np.float32), len(original))
    return float(parity.result()["snr_db"])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def detections(rng: np.random.Generator) -> np.ndarray:
    """Answers of a detector: boxes in pixels around a grid, scores of 20 classes, 64 anchors."""
    grid = rng.uniform(0, 640, size=(1, 4, 64))
    boxes = grid + rng.normal(scale=12, size=(50, 4, 64))
    scores = rng.beta(0.2, 6, size=(50, 20, 64)) * rng.uniform(0.2, 1, size=(1, 20, 1))
    return np.concatenate([boxes, scores], axis=1)


def test_boxes_and_scores_are_parts_of_their_own(detections: np.ndarray) -> None:
    assert labels(("batch", 24, 64), detections) == ["[:, 0:4]", "[:, 4:24]"]
    turned = detections.transpose(0, 2, 1)
    assert labels(("batch", 64, 24), turned) == ["[:, :, 0:4]", "[:, :, 4:24]"]


def test_scores_that_collapse_beside_boxes_are_seen(detections: np.ndarray) -> None:
    collapsed = detections.copy()
    collapsed[:, 4:] = detections[:, 4:].mean()
    about_zero = np.square(detections).sum() / np.square(detections - collapsed).sum()
    assert 10 * np.log10(about_zero) > 60
    assert snr(("batch", 24, 64), detections, collapsed) < 1


def test_an_offset_is_no_signal(rng: np.random.Generator) -> None:
    """Predictions of 300 +- 0.17 that are all the mean explain nothing: 0 dB, not 65."""
    answers = 300 + rng.normal(scale=0.17, size=(200, 1))
    assert snr(("batch", 1), answers, np.full_like(answers, answers.mean())) < 0.5
    assert snr(("batch", 1), answers, answers + rng.normal(scale=0.01, size=(200, 1))) > 20


def test_an_anchor_grid_is_no_signal(detections: np.ndarray) -> None:
    """Boxes that stay at their anchors explain nothing, though the anchors are far apart."""
    boxes = detections[:, :4]
    still = np.broadcast_to(boxes.mean(axis=0), boxes.shape)
    assert snr(("batch", 4, 64), boxes, still) < 0.5


def test_a_homogeneous_output_is_one_part(rng: np.random.Generator) -> None:
    scales = rng.lognormal(sigma=0.7, size=1000)
    assert labels(("batch", 1000), rng.normal(size=(64, 1000)) * scales) == [""]


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-3])
def test_a_few_nearly_dead_channels_are_no_part_of_their_own(
    rng: np.random.Generator, scale: float
) -> None:
    features = rng.normal(size=(64, 256))
    features[:, [3, 77, 200]] *= scale
    assert labels(("batch", 256), features) == [""]


def test_channels_far_above_the_rest_do_not_hide_it(rng: np.random.Generator) -> None:
    """Hidden states of transformers have some: the others are judged by themselves."""
    features = rng.normal(size=(64, 256))
    features[:, 9] *= 300
    assert labels(("batch", 256), features) == ["[:, 0:9+10:256]", "[:, 9:10]"]


def test_every_scale_of_a_regression_head_is_judged(rng: np.random.Generator) -> None:
    answers = rng.normal(size=(64, 3)) * [200.0, 1.0, 0.01]
    assert labels(("batch", 3), answers) == ["[:, 0:1]", "[:, 1:2]", "[:, 2:3]"]


def test_an_output_that_never_changes_is_held_to_a_tenth_of_itself() -> None:
    answers = np.full((8, 5), 50.0)
    assert snr(("batch", 5), answers, answers + 5.0) == pytest.approx(0.0, abs=1e-4)
    assert snr(("batch", 5), answers, answers + 0.05) == pytest.approx(40.0, abs=1e-3)


def test_dynamic_axes_count_as_samples(rng: np.random.Generator) -> None:
    tensor = Tensor("y", "float32", ("batch", "time", 4))
    pieces = [rng.normal(size=(2, length, 4)) for length in (3, 9, 5)]
    (part,) = find_parts(tensor, pieces)
    together = np.concatenate([piece.reshape(-1, 4) for piece in pieces])
    assert part.variance == pytest.approx(together.var(axis=0, ddof=1).mean())


def test_masked_scores_are_left_out(rng: np.random.Generator) -> None:
    answers = rng.normal(size=(50, 6))
    masked = answers.copy()
    masked[:, 2] = -np.inf
    (part,) = find_parts(Tensor("y", "float32", ("batch", 6)), [masked])
    live = np.delete(answers, 2, axis=1).var(axis=0, ddof=1)
    assert part.variance == pytest.approx(live.sum() / 6)


def test_an_offset_costs_no_digits(rng: np.random.Generator) -> None:
    answers = 1e8 + rng.normal(scale=1e-3, size=(100, 3)).astype(np.float64)
    tensor = Tensor("y", "float64", ("batch", 3))
    from edgepack.metrics.parts import Moments

    moments = Moments(tensor)
    for row in answers:
        moments.update(row[None])
    variance, _ = moments.result()
    assert variance[0] == pytest.approx(answers.var(axis=0, ddof=1), rel=1e-6)


def test_very_large_outputs_are_pooled_along_their_longest_axes(rng: np.random.Generator) -> None:
    answers = rng.normal(size=(2, 3, MAX_ELEMENTS // 2)).astype(np.float32)
    (part,) = find_parts(Tensor("y", "float32", ("batch", 3, MAX_ELEMENTS // 2)), [answers])
    assert part.variance == pytest.approx(1.0, rel=0.01)
