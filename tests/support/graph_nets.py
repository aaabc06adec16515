"""Small networks, each with one trait that exporters stumble over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from edgepack.runtime.tensor import Dim, Tensor


def floats(name: str, *shape: Dim) -> Tensor:
    return Tensor(name, "float32", shape)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def runner(
    module: nn.Module, inputs: Sequence[Tensor]
) -> Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]:
    """The original model as `Source.run` gives it."""

    def run(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            result = module(*(torch.from_numpy(arrays[tensor.name]) for tensor in inputs))
        leaves = torch.utils._pytree.tree_leaves(result)
        return tuple(leaf.numpy() for leaf in leaves)

    return run


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(self.norm(self.conv(x)), 0, 6)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((3, 4))


class Recurrent(nn.Module):
    """torch.export fixes the time axis of this one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps, state = self.rnn(x)
        return self.head(steps[:, -1]), state


class Steps(nn.Module):
    """The exporter states the traced size for the time axis of this one's output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class Unrolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.shape[0], 8)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # decided by values
            return x * 2
        return x


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 4) * 2


class Factorized(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(x)
        return {"logits": logits, "probabilities": logits.softmax(-1)}


class Repeated(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        doubled = x * 2
        return doubled, doubled, x


class Mixed(nn.Module):
    """A Python float, and inputs of three types."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.37
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return torch.where(keep[:, None], self.head(x) * self.scale, shift.float()[:, None])


class Ocr(nn.Module):
    """A bidirectional LSTM over the width of a picture; torch.export fails on its dynamic width."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.MaxPool2d((4, 1)),
        )
        self.lstm = nn.LSTM(4, 4, 2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.pools(x).squeeze(2).transpose(1, 2))[0]


class Sinc(nn.Module):
    """Filters that forward computes from parameters, with torch.clamp of mixed arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.linspace(0.1, 0.5, 4)[:, None])
        self.register_buffer("steps", torch.arange(1.0, 6.0)[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = torch.clamp(self.low.abs() + 0.1, 0, 1.0 / 2)
        filters = torch.sin(high @ self.steps) - torch.sin(self.low @ self.steps)
        return nn.functional.conv1d(x, filters[:, None])


class Masked(nn.Module):
    """An encoder with a causal mask, as torch's tutorial writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.triu(torch.full((5, 5), float("-inf")), 1)
        return self.encoder(x, mask=mask)


class Branch(nn.Module):
    """A path that depends on the values that are fed."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 0:
            x = x * 2
        return self.out(x)


class Guarded(nn.Module):
    """Branches on shapes and on weights, which every call takes alike."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 100 or self.out.weight.abs().max() > 1000:
            x = x * 2
        return self.out(x)
