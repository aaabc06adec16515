"""Samples from Python: every form gives the same stream, and what could be misread is refused."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from edgepack.data import PythonSamples, infer_inputs, open_samples
from edgepack.data.lint import lint
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

IMAGE = (Tensor("image", "float32", ("batch", 2, 3)),)
TOKENS = (Tensor("ids", "int64", ("batch", 4)), Tensor("mask", "int64", ("batch", 4)))
X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
Y = np.arange(10) % 3


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(X[index]), int(Y[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[np.ndarray, np.int64]]:
        return iter(zip(X, Y, strict=True))


def yield_tuples() -> Iterator[tuple[np.ndarray, int]]:
    yield from zip(X, map(int, Y), strict=True)


def yield_batches() -> Iterator[dict[str, object]]:
    for start in range(0, 10, 4):
        yield {"image": X[start : start + 4], "labels": Y[start : start + 4].tolist()}


FORMS: dict[str, object] = {
    "arrays by name": {"image": X, "labels": Y},
    "lists by name": {"image": X.tolist(), "label": Y.tolist()},
    "a tuple of arrays": (X, Y),
    "tensors": (torch.from_numpy(X), torch.from_numpy(Y)),
    "a list of tuples": list(zip(X, Y, strict=True)),
    "a list of dicts": [{"image": x, "label": y} for x, y in zip(X, Y, strict=True)],
    "lists of numbers": [(x.tolist(), int(y)) for x, y in zip(X, Y, strict=True)],
    "a dataset": Rows(),
    "a loader": DataLoader(Rows(), batch_size=4),
    "a loader of tensors": DataLoader(TensorDataset(*map(torch.from_numpy, (X, Y))), batch_size=3),
    "a loader without batches": DataLoader(Rows(), batch_size=None),
    "a stream": Stream(),
    "a generator function": yield_tuples,
    "a function of batches": yield_batches,
    "a function of a loader": lambda: DataLoader(Rows(), batch_size=4),
    "a function of arrays": lambda: {"image": X, "labels": Y},
}


def open_value(value: object, inputs: tuple[Tensor, ...] = IMAGE, **options: bool) -> Any:
    return open_samples(PythonSamples.of(value), inputs, **options)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    samples = open_value(FORMS[form])
    for _ in range(2):
        batches = list(samples.batches(4))
        assert [batch.count for batch in batches] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([b.inputs["image"] for b in batches]), X)
        np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), Y)
    expected = lint(open_value((X, Y)), None, IMAGE).digests
    assert lint(samples, None, IMAGE).digests == expected


def test_a_loader_that_shuffles_repeats_its_order_and_leaves_other_generators_alone() -> None:
    class Noisy(Rows):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image, label = super().__getitem__(index)
            noise = random.random() + np.random.random() + float(torch.rand(()))
            return image + noise, label

    own = torch.Generator().manual_seed(7)
    before = own.get_state()
    for loader in (
        DataLoader(Noisy(), batch_size=4, shuffle=True),
        DataLoader(Noisy(), batch_size=4, shuffle=True, generator=own),
    ):
        samples = open_value(loader)
        random.seed(1)
        torch.manual_seed(1)
        first = [batch.inputs["image"] for batch in samples.batches(4)]
        drawn = (random.random(), float(torch.rand(())))
        again = [batch.inputs["image"] for batch in samples.batches(4)]
        np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
        random.seed(1)
        torch.manual_seed(1)
        assert drawn == (random.random(), float(torch.rand(())))
    assert torch.equal(before, own.get_state())


def test_two_inputs_come_by_position_by_name_or_nested() -> None:
    ids, mask = np.arange(4), np.ones(4, np.int64)
    for item in (
        (ids, mask, 1),
        ((ids, mask), 1),
        ({"ids": ids, "mask": mask}, 1),
        [torch.from_numpy(ids), torch.from_numpy(mask), 1],
        {"ids": ids.tolist(), "mask": mask.tolist(), "label": 1},
    ):
        (batch,) = open_value([item], TOKENS).batches(2)
        assert batch.inputs["ids"].tolist() == [[0, 1, 2, 3]]
        assert batch.inputs["mask"].tolist() == [[1, 1, 1, 1]]
        assert batch.labels.tolist() == [1]
    (batch,) = open_value([(ids, mask)], TOKENS).batches(2)
    assert batch.labels is None


def test_tensors_with_a_gradient_and_of_bfloat16_are_read() -> None:
    row = torch.ones(2, 3, requires_grad=True) * 2
    (batch,) = open_value([row, row.bfloat16()]).batches(2)
    assert batch.inputs["image"].tolist() == [[[2] * 3] * 2] * 2


def test_columns_of_a_hugging_face_dataset_are_matched_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "ids": datasets.List(datasets.Value("int32")),
            "mask": datasets.List(datasets.Value("int64")),
            "sentiment": datasets.ClassLabel(names=["bad", "good"]),
        }
    )
    rows = {
        "text": ["a", "b", "c"],
        "ids": [[1, 2, 3, 4]] * 3,
        "mask": [[1, 1, 1, 0]] * 3,
        "sentiment": [0, 1, 1],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    (batch,) = open_value(table, TOKENS).batches(4)
    assert batch.inputs["ids"].tolist() == rows["ids"]
    assert batch.labels.tolist() == [0, 1, 1]
    assert open_value(table, TOKENS).class_names == ("bad", "good")
    # One input needs no name if there is one column of numbers for it.
    (batch,) = open_value(table.remove_columns("mask"), TOKENS[:1]).batches(4)
    assert batch.inputs["ids"].tolist() == rows["ids"]
    with pytest.raises(DataError, match="samples-missing-input"):
        list(open_value(table.remove_columns("mask"), TOKENS).batches(4))
    with pytest.raises(DataError, match="samples-split"):
        list(open_value(datasets.DatasetDict(train=table), TOKENS).batches(4))


def infer(value: object, *names: str) -> list[str]:
    tensors = infer_inputs(PythonSamples.of(value), names=names)
    assert tensors is not None
    return list(map(str, tensors))


def test_inputs_are_inferred_where_the_source_tells_samples_from_batches() -> None:
    for form in FORMS:
        if form == "a function of batches":
            continue
        expected = ["image:float32:batch,2,3"]
        assert infer(FORMS[form], "image") == expected, form
    loader = DataLoader([{"a": 1.5, "b": torch.ones(2)}], batch_size=1)
    assert infer(loader, "a", "b") == ["a:float64:batch", "b:float32:batch,2"]
    assert infer([(X[0], X[0], 3)], "first", "second") == [
        "first:float32:batch,2,3",
        "second:float32:batch,2,3",
    ]


@pytest.mark.parametrize("item", [X[0], {"image": X, "labels": Y}, (X[:, 0, 0], Y)])
def test_an_item_that_may_be_a_sample_or_a_batch_is_refused(item: object) -> None:
    with pytest.raises(DataError) as caught:
        infer([item], "image")
    assert caught.value.code == "samples-ambiguous"
    assert "--input image:float32:batch" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (3, "samples-function-result"),
        (iter([X]), "samples-one-pass"),
        ([(X[0], 1, 2)], "samples-function-result"),
        ([[[[1.0, 2.0], [3.0]]]], "samples-not-numbers"),
        ([X[0].astype("f8")], "samples-dtype"),
        ([(["a"], 1)], "samples-dtype"),
    ],
)
def test_values_that_hold_no_samples_are_refused(value: object, code: str) -> None:
    with pytest.raises(DataError) as caught:
        list(open_value(value).batches(4))
    assert caught.value.code == code


def test_numbers_that_the_input_does_not_hold_are_refused() -> None:
    with pytest.raises(DataError, match="samples-dtype"):
        list(open_value([([0.5, 1, 2, 3], [1, 1, 1, 1])], TOKENS).batches(1))
