"""Samples in array files: the rank rule, batching, streaming and what is inferred of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgepack.data import Samples, infer_inputs, open_samples
from edgepack.runtime.tensor import Tensor

IMAGE = (Tensor("image", "float32", ("batch", 3, 4, 5)),)
VAD = (
    Tensor("audio", "float32", ("batch", 16)),
    Tensor("state", "float32", (2, "batch", 8)),
    Tensor("rate", "int64", ()),
)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def joined(samples: Samples, name: str, size: int) -> np.ndarray:
    return np.concatenate([batch.inputs[name] for batch in samples.batches(size)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_comes_back_whole_in_batches_of_any_size(tmp_path: Path, save: object) -> None:
    images, labels = drawn(10, 3, 4, 5), np.arange(10)
    save(tmp_path / "a.npz", image=images, labels=labels)  # type: ignore[operator]
    samples = open_samples("a.npz", IMAGE, base=tmp_path)
    for size in (1, 3, 10, 64):
        batches = list(samples.batches(size))
        assert [batch.count for batch in batches][:-1] == [size] * (len(batches) - 1)
        assert sum(batch.count for batch in batches) == 10
        np.testing.assert_array_equal(joined(samples, "image", size), images)
        got = np.concatenate([batch.labels for batch in batches if batch.labels is not None])
        np.testing.assert_array_equal(got, labels)


def test_npy_is_the_single_input(tmp_path: Path) -> None:
    images = drawn(6, 3, 4, 5)
    np.save(tmp_path / "a.npy", images)
    samples = open_samples(str(tmp_path / "a.npy"), IMAGE)
    np.testing.assert_array_equal(joined(samples, "image", 4), images)
    assert next(iter(samples.batches(4))).labels is None


def test_the_kind_is_told_by_content_not_by_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", drawn(2, 3, 4, 5))
    (tmp_path / "a.npy").rename(tmp_path / "samples.bin")
    assert joined(open_samples("samples.bin", IMAGE, base=tmp_path), "image", 2).shape[0] == 2


def test_shards_are_read_in_order_and_batches_span_them(tmp_path: Path) -> None:
    images = drawn(7, 3, 4, 5)
    for index, part in enumerate(np.split(images, [1, 3, 6])):
        np.savez(tmp_path / f"{index:03}.npz", image=part)
    samples = open_samples(str(tmp_path), IMAGE)
    assert [batch.count for batch in samples.batches(3)] == [3, 3, 1]
    np.testing.assert_array_equal(joined(samples, "image", 3), images)


def test_one_axis_more_holds_a_whole_feed_in_each_row(tmp_path: Path) -> None:
    audio, state = drawn(5, 16), drawn(5, 2, 1, 8)
    np.savez(tmp_path / "a.npz", audio=audio, state=state, rate=np.full(5, 16000))
    batches = list(open_samples("a.npz", VAD, base=tmp_path).batches(32))
    assert [batch.count for batch in batches] == [1] * 5
    for index, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.inputs["audio"], audio[index : index + 1])
        np.testing.assert_array_equal(batch.inputs["state"], state[index])
        assert batch.inputs["rate"].shape == ()
        # A numpy scalar would do in numpy, and be refused by the engines.
        assert isinstance(batch.inputs["rate"], np.ndarray)


def test_a_fixed_batch_is_filled_exactly_and_the_rest_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", drawn(10, 3, 4, 5))
    fixed = (Tensor("image", "float32", (4, 3, 4, 5)),)
    samples = open_samples("a.npy", fixed, base=tmp_path)
    assert [batch.count for batch in samples.batches(1)] == [4, 4]
    single = (Tensor("image", "float32", (1, 3, 4, 5)),)
    assert [b.count for b in open_samples("a.npy", single, base=tmp_path).batches(8)] == [1] * 10


def test_samples_of_different_lengths_do_not_share_a_batch(tmp_path: Path) -> None:
    tokens = (Tensor("ids", "int64", ("batch", "tokens")),)
    for index, length in enumerate((3, 3, 7)):
        np.savez(tmp_path / f"{index}.npz", ids=np.ones((1, length), np.int64))
    shapes = [b.inputs["ids"].shape for b in open_samples(str(tmp_path), tokens).batches(8)]
    assert shapes == [(2, 3), (1, 7)]


def test_integers_are_widened_and_byte_order_is_turned(tmp_path: Path) -> None:
    ids = (Tensor("ids", "int64", ("batch", 3)),)
    np.savez(tmp_path / "a.npz", ids=np.arange(6, dtype=">i4").reshape(2, 3))
    samples = open_samples("a.npz", ids, base=tmp_path)
    batch = next(iter(samples.batches(2)))
    assert batch.inputs["ids"].dtype == np.int64
    np.testing.assert_array_equal(batch.inputs["ids"], [[0, 1, 2], [3, 4, 5]])
    assert samples.notes == ("ids is widened from int32 to int64.",)  # type: ignore[attr-defined]


def test_a_model_input_called_labels_is_an_input(tmp_path: Path) -> None:
    inputs = (Tensor("labels", "float32", ("batch", 2)),)
    np.savez(tmp_path / "a.npz", labels=drawn(3, 2))
    batch = next(iter(open_samples("a.npz", inputs, base=tmp_path).batches(3)))
    assert batch.labels is None
    assert batch.inputs["labels"].shape == (3, 2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path, save: object) -> None:
    wide = (Tensor("x", "float32", ("batch", 16384)),)
    peaks = []
    for count in (16, 512):
        save(tmp_path / f"{count}.npz", x=np.zeros((count, 16384), np.float32))  # type: ignore[operator]
        samples = open_samples(f"{count}.npz", wide, base=tmp_path)
        tracemalloc.start()
        assert sum(batch.count for batch in samples.batches(4)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 512 samples are 32 MiB; 4 are 256 KiB, and a few of those are alive at once.
    assert peaks[1] < 2**21
    assert peaks[1] < 1.5 * peaks[0]


def test_inputs_are_inferred_from_arrays_without_their_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=drawn(2, 3, 4, 5), n=np.ones(2, ">i8"), labels=np.ones(2))
    expected = (
        Tensor("image", "float32", ("batch", 3, 4, 5)),
        Tensor("n", "int64", ("batch",)),
    )
    assert infer_inputs("a.npz", tmp_path) == expected
    assert infer_inputs(str(tmp_path)) == expected
    np.save(tmp_path / "b.npy", drawn(2, 7))
    assert infer_inputs("b.npy", tmp_path) == (Tensor("input", "float32", ("batch", 7)),)


def test_pictures_do_not_tell_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert infer_inputs(".", tmp_path) is None
