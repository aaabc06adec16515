"""Small networks and samples to train with, and the context of a pass on the module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.data import open_samples
from edgepack.passes.module import ModuleContext
from edgepack.runtime.tensor import Tensor
from edgepack.stages.code import UserCode


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small operators in many threads stall where other processes want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


INPUTS = (Tensor("x", "float32", ("batch", 6)),)
SCORES = (Tensor("scores", "float32", ("batch", 3), "scores"),)


@dataclass
class Told:
    """A progress that keeps what it is told."""

    texts: list[str] = field(default_factory=list)
    steps: int = 0
    total: int = 0

    def begin(self, stage: str, total: int | None = None) -> None: ...

    def end(self, record: Any) -> None: ...

    def warn(self, message: str) -> None: ...

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def expect(self, total: int) -> None:
        self.total = total

    def tell(self, text: str) -> None:
        self.texts.append(text)


def network(seed: int = 0, wide: int = 16, dropout: float = 0.0) -> nn.Module:
    """x [batch, 6] to three scores, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(6, wide), nn.ReLU(), nn.Dropout(dropout), nn.Linear(wide, 3))
    return made.eval()


def drawn(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def labels_of(teacher: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return teacher(torch.from_numpy(x)).argmax(1).numpy()


def context(
    folder: Path,
    teacher: nn.Module,
    arrays: dict[str, np.ndarray],
    *,
    inputs: tuple[Tensor, ...] = INPUTS,
    outputs: tuple[Tensor, ...] = SCORES,
    gates: dict[str, float] | None = None,
    search: Path = Path(),
) -> ModuleContext:
    """What a pass is given; the training samples go through a file, as a user's do."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "training.npz", **arrays)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return ModuleContext(
        original=teacher,
        inputs=inputs,
        outputs=outputs,
        example={t.name: arrays[t.name][:1] for t in inputs},
        calibration=None,
        training=open_samples(str(folder / "training.npz"), inputs),
        gates=gates or {},
        code=UserCode(
            torch,
            (search,),
            "distill",
            inputs=tuple(tensor.name for tensor in inputs),
            outputs=tuple(tensor.name for tensor in outputs),
        ),
        work=work,
        progress=Told(),
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same bits."""
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
