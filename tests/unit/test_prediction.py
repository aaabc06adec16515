"""Predictions name the likeliest classes, and take what callers have."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.runtime.errors import InputError
from edgepack.runtime.prediction import (
    Prediction,
    fill_batch,
    find_top,
    make_feed,
    make_single,
    split_outputs,
)
from edgepack.runtime.tensor import Tensor

IMAGE = (Tensor("image", "float32", ("batch", 2)),)
SCORES = Tensor("scores", "float32", ("batch", 3), "scores")


def top(scores: list[float], count: int = 5) -> list[tuple[int, str, float]]:
    outputs = {"scores": np.array([scores], np.float32)}
    found = find_top(outputs, [SCORES], ("cat", "dog"), count)
    return [(entry.index, entry.name, round(entry.probability, 4)) for entry in found]


def test_probabilities_stay_and_logits_become_some() -> None:
    assert top([0.2, 0.7, 0.1]) == [(1, "dog", 0.7), (0, "cat", 0.2), (2, "2", 0.1)]
    logits = np.log([0.2, 0.7, 0.1]) + 5
    assert top(logits.tolist()) == [(1, "dog", 0.7), (0, "cat", 0.2), (2, "2", 0.1)]
    # Of equal scores the first comes first, and no more than asked for.
    assert top([1.0, 1.0, 1.0], 2) == [(0, "cat", 0.3333), (1, "dog", 0.3333)]


def test_only_a_single_decision_has_likeliest_classes() -> None:
    pixels = Tensor("scores", "float32", ("batch", 3, 4, 4), "scores", 1)
    maps = {"scores": np.zeros((1, 3, 4, 4), np.float32)}
    assert find_top(maps, [pixels], (), 5) == []
    one = Tensor("scores", "float32", ("batch", 3, 1, 1), "scores", 1)
    assert len(find_top({"scores": np.zeros((1, 3, 1, 1))}, [one], (), 5)) == 3
    values = {"scores": np.zeros((1, 3)), "other": np.zeros((1, 3))}
    twice = [SCORES, Tensor("other", "float32", ("batch", 3), "scores")]
    assert find_top(values, twice, (), 5) == []


def test_one_sample_fills_a_fixed_batch_and_its_answer_is_the_first() -> None:
    fixed = (Tensor("image", "float32", (4, 2)),)
    feed = {"image": np.array([[1.0, 2.0]], np.float32)}
    assert fill_batch(feed, fixed)["image"].shape == (4, 2)
    assert fill_batch(feed, IMAGE)["image"].shape == (1, 2)
    outputs = {"scores": np.arange(12.0).reshape(4, 3)}
    described = [Tensor("scores", "float32", (4, 3), "scores")]
    assert split_outputs(outputs, described, fixed)["scores"].tolist() == [[0, 1, 2]]


def test_one_sample_needs_no_batch_axis_and_several_are_refused() -> None:
    outputs = (SCORES,)
    for shape in ((2,), (1, 2)):
        feed = make_single({"image": np.zeros(shape, np.float32)}, IMAGE, outputs)
        assert feed["image"].shape == (1, 2)
    with pytest.raises(InputError) as caught:
        make_single({"image": np.zeros((3, 2), np.float32)}, IMAGE, outputs)
    assert (caught.value.code, caught.value.why) == ("input-counts", "it was given 3")
    # A model whose axis 0 is time, for example, takes any length of it.
    signal = (Tensor("signal", "float32", ("time", 2)),)
    assert make_single({"signal": np.zeros((3, 2))}, signal, outputs)["signal"].shape == (3, 2)


def test_a_prediction_prints_as_its_classes() -> None:
    outputs = {"scores": np.array([[0.2, 0.7, 0.1]], np.float32)}
    prediction = Prediction(outputs, find_top(outputs, [SCORES], ("cat", "dog"), 2))
    assert repr(prediction) == " 70.0 %  dog\n 20.0 %  cat"


def test_arrays_pass_through_and_files_need_a_preprocessing() -> None:
    array = np.zeros((1, 2), np.float32)
    assert make_feed(array, IMAGE, None)["image"] is array
    assert make_feed({"image": array}, IMAGE, None)["image"] is array
    with pytest.raises(InputError) as caught:
        make_feed("photo.jpg", IMAGE, None)
    assert caught.value.code == "preprocessing-missing"
    with pytest.raises(InputError) as caught:
        make_feed(array, (*IMAGE, Tensor("mask", "int64", ("batch",))), None)
    assert caught.value.code == "input-names"


def test_boxes_are_printed_best_first_with_their_classes() -> None:
    boxes = np.array([[1, 2, 30, 4], [5.6, 6, 7, 8]], np.float32)
    result = {"boxes": boxes, "scores": np.array([0.25, 0.75]), "labels": np.array([1, 7])}
    found = Prediction({}, (), result, decoded=True, names=("disc", "square"))
    assert found.lines() == [" 0.750  7       6 6 7 8", " 0.250  square  1 2 30 4"]
    assert found.to_json()["result"]["labels"] == [1, 7]
    none = {name: value[:0] for name, value in result.items()}
    assert Prediction({}, (), none, decoded=True).lines() == ["no boxes"]
    # Lists are taken too, and any other result is printed as JSON.
    lists = {name: value.tolist() for name, value in result.items()}
    assert Prediction({}, (), lists, decoded=True, names=("a", "b")).lines()[1].split()[1] == "b"
    for odd in ({"scores": [0.5]}, {"labels": ["disc", "square"]}, {"boxes": [[1], [1, 2]]}):
        [line] = Prediction({}, (), {**lists, **odd}, decoded=True).lines()
        assert line.startswith("{")


def test_small_outputs_are_printed_and_large_ones_described() -> None:
    outputs = {"price": np.array([[1.5]], np.float32), "map": np.zeros((1, 9, 9), np.float32)}
    lines = Prediction(outputs, ()).lines()
    assert lines == ["price: [1.5]", "map: float32 (1, 9, 9)"]
    assert Prediction({"price": outputs["price"]}, ()).to_json() == {"outputs": {"price": [[1.5]]}}
