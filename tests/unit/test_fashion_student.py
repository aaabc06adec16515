"""The student of examples/fashion_student.py, and what it may learn from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch

from support import ROOT
from support.fashion_cases import need_pictures


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        import fashion_student

        yield fashion_student
        for name in ("fashion_student", "fashion_resnet"):
            sys.modules.pop(name, None)


def test_its_size(example: ModuleType) -> None:
    network = example.student().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 19_938
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_hundred_labels_of_each_class(example: ModuleType) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 5000).astype(np.uint8)
    few = example.labels_of_few(labels)
    assert few.dtype == np.int64
    assert [int((few == label).sum()) for label in range(10)] == [100] * 10
    assert (few == -1).sum() == 4000
    assert np.array_equal(few[few >= 0], labels[few >= 0])


def test_every_picture_and_few_labels(example: ModuleType) -> None:
    need_pictures()
    count, labelled = 0, 0
    for item in example.training():
        assert item["image"].shape[1:] == (1, 28, 28)
        count += len(item["image"])
        labelled += int((item["label"] >= 0).sum())
    assert (count, labelled) == (60_000, 1000)
    (alone,) = example.labelled()
    assert len(alone["image"]) == len(alone["label"]) == 1000
    assert alone["label"].min() == 0


def test_augmented_pictures_are_the_same_pictures(example: ModuleType) -> None:
    image = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = [
        example.augmented({"image": image}, torch.Generator().manual_seed(seed))["image"]
        for seed in (1, 1, 2)
    ]
    assert found[0].shape == image.shape
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
