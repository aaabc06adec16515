"""A student of 19,938 parameters for Fashion-MNIST, and what it may learn from.

    edgepack build --target cpu-fbgemm --manifest manifests/fashion-student.toml \
        manifests/weights/fashion-resnet.safetensors

Of the 60,000 training pictures 1,000 keep their label, 100 of each class; the others count as
pictures that nobody has labelled yet. By those labels alone the student is right on about 80 % of
the test pictures; taught by the large network's answers to all of them, on more than 90 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fashion_resnet import CLASSES, augment, pictures, standardise
from torch import nn

LABELLED_PER_CLASS = 100
CHUNK = 1000


class Student(nn.Module):
    """Pictures [batch, 1, 28, 28], standardised, to class scores [batch, 10]."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((1, *channels), channels, strides, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1], CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(self.body(image).mean(dim=(2, 3)))
        return scores


def student() -> Student:
    """The untrained student."""
    return Student(channels=(28, 30, 24, 24), strides=(2, 1, 2, 1))


def labels_of_few(labels: np.ndarray) -> np.ndarray:
    """int64 [count]: the first 100 labels of each class, and -1 (no label) for all others."""
    few = np.full(len(labels), -1, np.int64)
    for label in range(CLASSES):
        chosen = np.flatnonzero(labels == label)[:LABELLED_PER_CLASS]
        few[chosen] = label
    return few


def training() -> Iterator[dict[str, Any]]:
    """All 60,000 training pictures; 1,000 of them have their label, the others -1."""
    images, labels = pictures("train")
    few = labels_of_few(labels)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        yield {"image": standardise(images[part]), "label": few[part]}


def labelled() -> Iterator[dict[str, Any]]:
    """The 1,000 labelled ones alone."""
    images, labels = pictures("train")
    few = labels_of_few(labels)
    yield {"image": standardise(images[few >= 0]), "label": few[few >= 0]}


def augmented(inputs: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Each picture mirrored by chance and moved by up to two pixels."""
    return {"image": augment(inputs["image"], generator)}
