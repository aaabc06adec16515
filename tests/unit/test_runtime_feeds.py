"""From arrays of samples to calls of the model."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.runtime.errors import InputError
from edgepack.runtime.session.feeds import feeds, fixed_batch, whole_feeds
from edgepack.runtime.tensor import Tensor

X = Tensor("x", "float32", ("batch", 3))
STATE = Tensor("state", "float32", (2, "batch", 4))
RATE = Tensor("rate", "int64", ())


def shapes(arrays: dict[str, np.ndarray], *inputs: Tensor, size: int = 1) -> list[tuple]:
    return [
        tuple(call[tensor.name].shape for tensor in inputs) for call in feeds(arrays, inputs, size)
    ]


@pytest.mark.parametrize(("size", "rows"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_samples_along_the_batch_axis(size: int, rows: list[int]) -> None:
    found = shapes({"x": np.zeros((5, 3))}, X, size=size)
    assert found == [((count, 3),) for count in rows]


def test_one_axis_more_makes_each_row_a_whole_feed() -> None:
    assert shapes({"x": np.zeros((5, 7, 3))}, X, size=2) == [((7, 3),)] * 5


def test_inputs_without_a_batch_axis_come_as_whole_feeds() -> None:
    arrays = {"x": np.zeros((4, 3)), "state": np.zeros((4, 2, 1, 4)), "rate": np.arange(4)}
    assert whole_feeds(arrays, [X, STATE, RATE])
    assert shapes(arrays, X, STATE, RATE) == [((1, 3), (2, 1, 4), ())] * 4
    assert [int(call["rate"]) for call in feeds(arrays, [X, STATE, RATE])] == [0, 1, 2, 3]


def test_the_order_is_that_of_the_samples() -> None:
    rows = np.arange(6.0).reshape(2, 3)
    calls = list(feeds({"x": rows}, [X]))
    np.testing.assert_array_equal(np.concatenate([call["x"] for call in calls]), rows)


def test_a_fixed_batch_is_filled() -> None:
    fixed = Tensor("x", "float32", (4, 3))
    assert (fixed_batch([X]), fixed_batch([fixed]), fixed_batch([RATE])) == (None, 4, None)
    assert shapes({"x": np.zeros((8, 3))}, fixed) == [((4, 3),)] * 2


def test_labels_beside_the_inputs_are_not_fed() -> None:
    (call,) = feeds({"x": np.zeros((1, 3)), "labels": np.zeros(1)}, [X])
    assert list(call) == ["x"]


@pytest.mark.parametrize(
    ("arrays", "inputs", "code", "why"),
    [
        ({}, [X], "input-names", "missing: x; there are: none"),
        ({"y": np.zeros((1, 3))}, [X], "input-names", "missing: x; there are: y"),
        (
            {"x": np.zeros((2, 3)), "rate": np.zeros(3)},
            [X, RATE],
            "input-counts",
            "x: 2, rate: 3",
        ),
        (
            {"x": np.zeros((6, 3))},
            [Tensor("x", "float32", (4, 3))],
            "input-counts",
            "the batch is fixed to 4; there are 6 samples",
        ),
        ({"x": np.zeros((0, 3))}, [X], "input-counts", "every array has 0 rows"),
        ({"x": np.float32(1)}, [X], "input-shape", "x is a single value"),
        (
            {"x": np.zeros((10, 4))},
            [X],
            "input-shape",
            "the array x is (10, 4): 10 samples of (4,)",
        ),
        (
            {"x": np.zeros((5, 7, 4))},
            [X],
            "input-shape",
            "the array x is (5, 7, 4): 5 feeds of (7, 4)",
        ),
        ({"x": np.zeros(3)}, [X], "input-shape", "the array x is (3,)"),
    ],
)
def test_what_does_not_fit(
    arrays: dict[str, np.ndarray], inputs: list[Tensor], code: str, why: str
) -> None:
    with pytest.raises(InputError) as caught:
        list(feeds(arrays, inputs))
    assert (caught.value.code, caught.value.why) == (code, why)
    assert caught.value.hint
