"""Small networks for the passes that cut them, and their context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgepack.data import open_samples
from edgepack.passes.module import ModuleContext, ModuleResult
from edgepack.runtime.tensor import Tensor
from support.training_cases import context

IMAGE = (Tensor("x", "float32", ("batch", 3, 12, 12)),)
SCORES = (Tensor("scores", "float32", ("batch", 5), "scores"),)
TOKENS = (Tensor("input_ids", "int64", ("batch", "sequence")),)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In eval mode; running statistics as after a training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = make()
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0, 0.1)
    return made.eval()


class Residual(nn.Module):
    """Two blocks with a shortcut, one of them a 1x1 convolution."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.three = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn2(self.two(F.relu(self.bn1(self.one(x))))))
        x = F.relu(self.three(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenated features, as DenseNet and U-Net have them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.three = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.head = nn.Linear(4 * width, 5)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.one(x))
        x = torch.cat((x, F.relu(self.two(x))), 1)
        x = torch.cat((x, F.relu(self.three(x))), 1)
        return self.head(x.mean((2, 3)))


def mobile(width: int = 24, groups: int = 0) -> nn.Module:
    """A depthwise block (or a grouped one), flattened into a Linear."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, width, 3, padding=1, groups=groups or width), nn.BatchNorm2d(width),
        nn.Hardswish(), nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * width, 32), nn.PReLU(), nn.Linear(32, 5),
    )  # fmt: skip


def mlp(width: int = 32) -> nn.Module:
    """Flat input of 432 values."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(432, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 5),
    )  # fmt: skip


def pictures(count: int = 40, seed: int = 1) -> np.ndarray:
    """Smooth pictures: neighbouring pixels resemble each other, as real ones do."""
    drawn = np.random.default_rng(seed).standard_normal((count, 3, 4, 4))
    return np.kron(drawn, np.ones((3, 3))).astype(np.float32)


def given(folder: Path, network: nn.Module, **arrays: Any) -> ModuleContext:
    """The context of a pass on pictures; samples are both for calibration and for training."""
    arrays = arrays or {"x": pictures()}
    return with_calibration(folder, context(folder, network, arrays, inputs=IMAGE, outputs=SCORES))


def tiny_bert(folder: Path) -> tuple[nn.Module, ModuleContext]:
    """A BERT of two layers of four heads as a Hugging Face folder gives it, and its context."""
    from transformers import BertConfig, BertForSequenceClassification

    from edgepack.source.positional import NamedModule

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, num_labels=5,
        attn_implementation="eager",
    )  # fmt: skip
    inner = seeded(lambda: BertForSequenceClassification(config))
    network = NamedModule(inner, ("input_ids",), ("logits",)).eval()
    ids = np.random.default_rng(2).integers(0, 60, (40, 9))
    made = context(folder, network, {"input_ids": ids}, inputs=TOKENS, outputs=SCORES)
    return network, with_calibration(folder, made)


def with_calibration(folder: Path, made: ModuleContext) -> ModuleContext:
    """The same, calibrated on its training samples."""
    return replace(made, calibration=open_samples(str(folder / "training.npz"), made.inputs))


def ask(network: nn.Module, x: Any) -> Any:
    """Its answer, a tensor."""
    with torch.no_grad():
        found = network(torch.from_numpy(np.asarray(x)))
    return found[0] if isinstance(found, tuple) else found


def replayed(
    replay: Callable[..., nn.Module], fresh: nn.Module, found: ModuleResult, given: ModuleContext
) -> nn.Module:
    """What the build goes on with: the recipe on a fresh copy, and the weights."""
    made = replay(fresh, found.recipe, given)
    made.load_state_dict(found.model.state_dict())
    return made.eval()


def snr(reference: Any, answer: Any) -> float:
    """In dB, about the mean of the reference."""
    error = (reference - answer).double().square().sum()
    signal = (reference - reference.mean(0)).double().square().sum()
    return float(10 * torch.log10(signal / error.clamp(min=1e-30)))
