"""Samples on disk, read in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Samples, open_samples
from edgepack.data.store import LABELS, Store, store_samples
from edgepack.data.stream import Piece, SampleStream
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

TWO = (Tensor("x", "float32", ("batch", 3)), Tensor("y", "int64", ("batch",)))


def saved(path: Path, inputs: tuple[Tensor, ...], **arrays: np.ndarray) -> Samples:
    np.savez(path, **arrays)
    return open_samples(str(path), inputs)


def test_rows_in_any_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
    y, labels = np.arange(150), np.arange(150, dtype=np.uint8) % 7
    samples = saved(tmp_path / "s.npz", TWO, x=x, y=y, labels=labels)
    found = store_samples(tmp_path / "store", samples)
    assert found.count == 150
    (group,) = found.groups
    assert not group.whole
    order = np.random.default_rng(1).permutation(150)
    assert np.array_equal(found.rows("x", order), x[order])
    assert np.array_equal(found.rows("y", order[:5]), y[order[:5]])
    kept = found.rows(LABELS, order)
    assert np.array_equal(kept, labels[order])
    assert kept.dtype == np.int64


def test_what_is_complete_is_opened_again(tmp_path: Path) -> None:
    def pieces(size: int):
        yield Piece({"x": np.ones((2, 3), np.float32)}, None, 2, True)

    store_samples(tmp_path / "store", SampleStream("once", pieces, None))

    def none(size: int):
        raise AssertionError("read a second time")
        yield

    again = store_samples(tmp_path / "store", SampleStream("never", none, None))
    assert again.rows("x", [1, 0]).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_what_is_not_complete_is_written_anew(tmp_path: Path) -> None:
    def broken(size: int):
        yield Piece({"x": np.zeros((2, 3), np.float32)}, None, 2, True)
        raise DataError("samples-function-failed", "broken")

    with pytest.raises(DataError):
        store_samples(tmp_path / "store", SampleStream("broken", broken, None))

    def whole(size: int):
        yield Piece({"x": np.ones((1, 3), np.float32)}, None, 1, True)

    found = store_samples(tmp_path / "store", SampleStream("whole", whole, None))
    assert found.count == 1
    assert Store(tmp_path / "store").rows("x", [0]).tolist() == [[1, 1, 1]]


def test_sizes_that_differ_are_groups(tmp_path: Path) -> None:
    def pieces(size: int):
        for i in range(9):
            length = 2 + i % 3
            yield Piece({"x": np.full((1, length), i, np.float32)}, np.array([i]), 1, True)

    found = store_samples(tmp_path / "store", SampleStream("ragged", pieces, None))
    assert sorted(group.shapes["x"] for group in found.groups) == [(2,), (3,), (4,)]
    for group in found.groups:
        rows = found.rows("x", group.members)
        assert rows.shape == (3, *group.shapes["x"])
        assert np.array_equal(rows[:, 0], group.members)
        assert np.array_equal(found.rows(LABELS, group.members), group.members)


def test_whole_feeds(tmp_path: Path) -> None:
    inputs = (Tensor("state", "float32", (2, "batch", 3)), Tensor("x", "float32", ("batch", 3)))
    state = np.random.default_rng(0).standard_normal((5, 2, 1, 3)).astype(np.float32)
    x = np.zeros((5, 1, 3), np.float32)
    samples = saved(tmp_path / "s.npz", inputs, state=state, x=x)
    found = store_samples(tmp_path / "store", samples)
    assert found.is_whole([3])
    assert np.array_equal(found.rows("state", [3]), state[3])


@pytest.mark.parametrize("kinds", [(np.int64, np.float32), (np.float64, np.uint8)])
def test_labels_of_two_kinds(tmp_path: Path, kinds: tuple[type, type]) -> None:
    def pieces(size: int):
        for kind in kinds:
            yield Piece({"x": np.ones((1, 3), np.float32)}, np.ones(1, kind), 1, True)

    with pytest.raises(DataError) as caught:
        store_samples(tmp_path / "store", SampleStream("mixed", pieces, None))
    assert caught.value.code == "samples-labels-type"
    assert "sample 1" in caught.value.why


def test_a_label_of_no_class_keeps_its_sign(tmp_path: Path) -> None:
    def pieces(size: int):
        yield Piece({"x": np.ones((1, 3), np.float32)}, np.array([200], np.uint8), 1, True)
        yield Piece({"x": np.ones((1, 3), np.float32)}, np.array([-1]), 1, True)

    found = store_samples(tmp_path / "store", SampleStream("mixed", pieces, None))
    assert found.rows(LABELS, [1, 0]).tolist() == [-1, 200]
