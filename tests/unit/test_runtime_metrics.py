"""Metrics held against values known beforehand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edgepack.metrics.parts import find_parts
from edgepack.runtime.parity.accuracy import Accuracy
from edgepack.runtime.parity.metrics import Parity, compare
from edgepack.runtime.parity.parts import SNR_LIMIT, Part
from edgepack.runtime.tensor import Tensor


def make_parity(reference: np.ndarray, scores: bool = False) -> Parity:
    """Compare answers like these, all of them of one part."""
    shape = tuple(f"axis_{i}" for i in range(reference.ndim))
    tensor = Tensor("y", str(reference.dtype), shape, "scores" if scores else "values")
    return Parity(tensor, find_parts(tensor, [reference]))


def parity(reference: object, measured: object, scores: bool = False) -> dict:
    expected = np.array(reference)
    comparison = make_parity(expected, scores)
    comparison.update(expected, np.array(measured))
    json.dumps(comparison.result(), allow_nan=False)  # JSON has neither NaN nor infinity
    return comparison.result()


def test_snr_of_a_known_error() -> None:
    """Variance 50 of two samples, mean squared error 0.5: 20 dB."""
    found = parity([10.0, 0.0], [10.0, 1.0])
    assert found["snr_db"] == pytest.approx(20.0)
    assert found["max_abs"] == 1.0
    assert found["cosine"] == pytest.approx(10 / math.sqrt(101))
    assert not found["bit_exact"]


def test_batches_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 4)).astype(np.float32)
    b = a + rng.normal(scale=0.1, size=a.shape).astype(np.float32)
    parts = make_parity(a, scores=True)
    for start in (0, 2, 4):
        parts.update(a[start : start + 2], b[start : start + 2])
    whole = make_parity(a, scores=True)
    whole.update(a, b)
    pieces, total = parts.result(), whole.result()
    assert pieces.pop("parts")[0]["max_abs"] == total.pop("parts")[0]["max_abs"]
    assert pieces == pytest.approx(total)


def test_the_same_bits() -> None:
    found = parity([1.0, 2.0], [1.0, 2.0])
    assert (found["snr_db"], found["bit_exact"], found["cosine"]) == (None, True, 1.0)


def test_zero_has_two_bit_patterns() -> None:
    found = parity([0.0, 1.0], [-0.0, 1.0])
    assert (found["snr_db"], found["bit_exact"]) == (None, False)


def test_another_type_is_not_bit_exact() -> None:
    found = make_parity(np.ones(2, np.float32))
    found.update(np.ones(2, np.float32), np.ones(2, np.float64))
    assert (found.result()["snr_db"], found.result()["bit_exact"]) == (None, False)


def test_both_all_zero() -> None:
    found = parity([0.0, 0.0], [0.0, 0.0])
    assert (found["snr_db"], found["cosine"]) == (None, 1.0)


def test_an_error_against_silence_is_as_bad_as_can_be() -> None:
    found = parity([0.0, 0.0], [0.0, 1e-3])
    assert (found["snr_db"], found["cosine"]) == (-SNR_LIMIT, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(broken: float) -> None:
    found = parity([1.0, 2.0, 3.0], [1.0, broken, broken])
    assert (found["nonfinite"], found["snr_db"]) == (2, -SNR_LIMIT)


def test_a_reference_that_is_not_a_number_is_never_matched() -> None:
    assert parity([math.nan], [math.nan])["nonfinite"] == 1


def test_equal_infinities_are_no_error() -> None:
    """Masked scores are minus infinity on both sides."""
    found = parity([-math.inf, 3.0], [-math.inf, 3.0], scores=True)
    assert (found["nonfinite"], found["snr_db"], found["bit_exact"]) == (0, None, True)
    assert parity([-math.inf, 3.0], [math.inf, 3.0])["nonfinite"] == 1


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_that_leave_the_range_of_floats_claim_nothing(scale: float) -> None:
    found = parity([1.0 * scale, 2.0 * scale], [1.0 * scale, 3.0 * scale])
    assert found["snr_db"] == -SNR_LIMIT


def test_another_shape_is_as_wrong_as_can_be() -> None:
    found = parity([[1.0, 2.0]], [1.0, 2.0])
    assert (found["bit_exact"], found["nonfinite"], found["snr_db"]) == (False, 2, -SNR_LIMIT)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_are_compared_for_equality(dtype: str) -> None:
    a = np.array([0, 1, 1, 0]).astype(dtype)
    assert parity(a, a[::-1])["bit_exact"]
    found = parity(a, np.array([1, 1, 1, 0]).astype(dtype))
    assert (found["compared"], found["decisions"], found["top1_agreement"]) == ("equality", 4, 0.75)
    assert (found["snr_db"], found["max_abs"]) == (None, 1.0)


def lists(reference: list[int], measured: list[int]) -> float:
    """Compare the indices of kept boxes, of which there may be any number."""
    tensor, boxes = Tensor("kept", "int64", ("kept_0",)), Tensor("boxes", "float32", (1, 4, 100))
    pair = ([np.array(reference, np.int64)], [np.array(measured, np.int64)])
    metrics = compare([tensor], {}, [pair], [boxes])["kept"]
    assert metrics["nonfinite"] == 0
    return float(metrics["top1_agreement"])


@pytest.mark.parametrize(
    ("reference", "measured", "share"),
    [
        ([3, 7, 9], [3, 7, 9], 1.0),
        ([3, 7, 9], [3, 9], 2 / 3),
        ([3, 7, 9], [3, 8, 7, 9], 3 / 4),
        ([3, 7, 9, 4], [5, 3, 7, 9], 3 / 4),
        ([3, 7, 9], [], 0.0),
        ([], [], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], 1 / 4),
    ],
)
def test_lists_share_what_they_have_in_the_same_order(
    reference: list[int], measured: list[int], share: float
) -> None:
    assert lists(reference, measured) == pytest.approx(share)


def test_the_worst_sample_of_a_batch_is_known() -> None:
    """Errors of 1 and 3 in samples of two values: mean squares 0.5 and 4.5."""
    tensor = Tensor("y", "float32", ("batch", 2))
    comparison = Parity(tensor, [Part(None, (), 1.0)])
    reference = np.zeros((2, 2), np.float32)
    comparison.update(reference, np.array([[1, 0], [0, 3]], np.float32), count=2)
    (part,) = comparison.result()["parts"]
    assert (part["worst_error"], part["max_abs"]) == (4.5, 3.0)


def test_the_worst_part_decides() -> None:
    tensor = Tensor("y", "float32", ("batch", 3))
    parts = [Part(1, ((0, 1),), 1e4), Part(1, ((1, 3),), 1.0)]
    comparison = Parity(tensor, parts)
    comparison.update(np.zeros((1, 3), np.float32), np.array([[1, 1, 1]], np.float32))
    metrics = comparison.result()
    assert [part["snr_db"] for part in metrics["parts"]] == pytest.approx([40.0, 0.0])
    assert (metrics["snr_db"], metrics["part"]) == (pytest.approx(0.0), "[:, 1:3]")


def test_a_scalar_output() -> None:
    tensor = Tensor("y", "float32", ())
    found = Parity(tensor, [Part(None, (), 4.0)])
    found.update(np.float32(2.0).reshape(()), np.float32(2.2).reshape(()))
    assert found.result()["snr_db"] == pytest.approx(20.0, abs=1e-4)


def test_agreement() -> None:
    """Of four decisions two have the same best class; three are among the five best."""
    classes = np.eye(8)
    reference = classes[[0, 1, 2, 3]] + np.linspace(0, 0.5, 8)
    measured = reference.copy()
    measured[2, 7] += 2  # the best is now second
    measured[3, 4:] += 2  # ... fifth
    measured[3, 0] += 2  # ... sixth
    found = parity(reference, measured, scores=True)
    assert (found["decisions"], found["top1_agreement"], found["top5_agreement"]) == (4, 0.5, 0.75)


def test_scores_that_are_all_equal_agree_with_the_first_class_alone() -> None:
    reference = np.eye(10)[[0, 5, 9]]
    found = parity(reference, np.zeros((3, 10)), scores=True)
    assert found["top1_agreement"] == pytest.approx(1 / 3)
    assert found["top5_agreement"] == pytest.approx(1 / 3)


def test_scores_that_are_no_numbers_agree_with_nothing() -> None:
    found = parity(np.eye(4), np.full((4, 4), math.nan), scores=True)
    assert found["top5_agreement"] == 0


def test_without_scores_nothing_is_decided() -> None:
    found = parity([[1.0, 2.0]], [[2.0, 1.0]])
    assert (found["decisions"], found["top1_agreement"]) == (0, None)


def test_accuracy() -> None:
    accuracy = Accuracy("top1")
    scores = np.eye(4)
    accuracy.update(scores, scores[[0, 1, 3, 2]], np.array([0, 1, 2, 0]))
    assert accuracy.result() == {
        "name": "top1",
        "original": 0.75,
        "model": 0.5,
        "drop_points": 25.0,
        "samples": 4,
    }


def test_accuracy_of_the_five_best() -> None:
    accuracy = Accuracy("top5")
    scores = np.arange(8.0)[None]
    for label in (3, 2):
        accuracy.update(scores, scores, np.array([label]))
    found = accuracy.result()
    assert found is not None
    assert found["model"] == 0.5


def test_no_labels_no_accuracy() -> None:
    assert Accuracy("top1").result() is None


def test_compare_by_output() -> None:
    outputs = (Tensor("a", "float32", ("n",), "scores"), Tensor("b", "float32", ("n",)))
    ones = np.ones(3, np.float32)
    whole = [Part(None, (), 1.0)]
    found = compare(outputs, {"a": whole, "b": whole}, [([ones, ones], [ones, 2 * ones])] * 2)
    assert found["a"]["bit_exact"]
    assert found["a"]["decisions"] == 2
    assert found["b"]["snr_db"] == 0.0
