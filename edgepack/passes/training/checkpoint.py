"""Checkpoint of a training in one file; an interrupted build resumes from it bit for bit.

It contains the weights, the state of the optimizer and the counters, as safetensors without pickle.
Order, augmentation and dropout depend on the seed and the step only, so no random state is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack import files
from edgepack.passes.training import processes

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "checkpoint.safetensors"


@dataclass
class Position:
    """Progress of a training.

    Attributes:
        step: number of completed optimizer steps.
        best: the best held-out score.
        best_epoch: the epoch of that score, counted from 1.
        loss: sum of the losses of this epoch's steps.
        losses: number of these losses.
        scores: the held-out score of each epoch.
        scaler: state of the fp16 scaler.
    """

    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    loss: float = 0.0
    losses: int = 0
    scores: list[float] = field(default_factory=list)
    scaler: Mapping[str, object] = field(default_factory=dict)


def collect_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers, including the ones that a state dict omits."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copy_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters and buffers, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in collect_tensors(module).items()}


def restore(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Restore the values that `copy_tensors` returned."""
    import torch

    with torch.no_grad():
        for name, tensor in collect_tensors(module).items():
            tensor.copy_(values[name])


def save(
    folder: Path,
    position: Position,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, torch.Tensor] | None,
) -> None:
    """Write the checkpoint atomically, in the main process only. Raises HostError."""
    if not processes.is_main():
        return
    from safetensors.torch import save as serialize

    # One flat file: names carry a prefix for the module, the optimizer or the best weights, as in
    # "module/fc.weight", "optimizer/0/exp_avg" and "best/fc.weight".
    tensors: dict[str, torch.Tensor] = {}
    for name, value in copy_tensors(module).items():
        tensors[f"module/{name}"] = value
    for index, states in optimizer.state_dict()["state"].items():
        for key, value in states.items():
            if value is not None:
                tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().clone()
    for name, value in (best or {}).items():
        tensors[f"best/{name}"] = value
    # safetensors rejects strided tensors, such as channels-last weights.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files.write(folder / NAME, serialize(tensors, {"position": json.dumps(vars(position))}))


def load(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Position, dict[str, torch.Tensor] | None]:
    """Restore module and optimizer; return the position and the best weights of the checkpoint.

    Without a checkpoint the position is the beginning. Other processes get the main one's file.
    """
    path = folder / NAME
    # One process decides: if the file appeared in between, the others would start elsewhere.
    data = None
    if processes.is_main() and path.exists():
        data = path.read_bytes()
    data = processes.broadcast(data)
    if data is None:
        return Position(), None
    from safetensors.torch import load as read

    tensors = read(data)
    # A safetensors file begins with the length of its JSON header, as a little-endian u64.
    length = int.from_bytes(data[:8], "little")
    position = json.loads(data[8 : 8 + length])["__metadata__"]["position"]
    restore(module, _select_prefix("module/", tensors))
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _select_prefix("optimizer/", tensors).items():
        index, _, key = name.partition("/")
        states.setdefault(int(index), {})[key] = tensor
    # The parameter groups follow from the options, so the new optimizer's are the same.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    return Position(**json.loads(position)), _select_prefix("best/", tensors) or None


def _select_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    selected = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            selected[name.removeprefix(prefix)] = tensor
    return selected
