"""A student of 19,938 parameters for Fashion-MNIST, and what it may learn from.

    edgepack build --target cpu-fbgemm --manifest manifests/fashion-student.toml \
        examples/weights/fashion-resnet.safetensors

Of the 60,000 training pictures 1,000 keep their label, 100 of each class; the others count as
pictures that nobody has labelled yet. By those labels alone the student is right on about 80 % of
the test pictures; taught by the large network's answers to all of them, on more than 90 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fashion_resnet import CHUNK, CLASSES, FashionResNet, augment, model, pictures, standardise
from torch import nn

LABELLED_PER_CLASS = 100
VIEWS = 3


def student() -> FashionResNet:
    """The untrained student: the network of its teacher, of 8 channels and one block a stage.

    Its first convolution is 5x5: with so few channels it pays to see more at once.
    """
    network = model(width=8, blocks=1)
    network.stem[0] = nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False)
    return network


def compact() -> FashionResNet:
    """An untrained student of the kind of its teacher, of 16 channels and two blocks a stage."""
    return model(width=16, blocks=2)


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


def many() -> Iterator[dict[str, Any]]:
    """Every labelled training picture as it is, and `VIEWS` times mirrored and moved.

    Stored so, the teacher answers each once, however many epochs its student learns for.
    """
    images, labels = pictures("train")
    generator = torch.Generator().manual_seed(0)
    for view in range(1 + VIEWS):
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            image = standardise(images[part])
            if view:
                image = augment(torch.from_numpy(image), generator).numpy()
            yield {"image": image, "label": labels[part].astype(np.int64)}


def labelled() -> Iterator[dict[str, Any]]:
    """The 1,000 labelled ones alone."""
    images, labels = pictures("train")
    few = labels_of_few(labels)
    yield {"image": standardise(images[few >= 0]), "label": few[few >= 0]}


def augmented(inputs: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Each picture mirrored by chance and moved by up to two pixels."""
    return {"image": augment(inputs["image"], generator)}
