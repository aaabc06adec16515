"""Where a training is, in one file: a killed build goes on from it with the same bits.

Weights, what the optimizer remembers and the counters; safetensors, nothing pickled. Order,
augmentation and dropout follow from the seed and the step, so that no random state is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack import files
from edgepack.chain.training import processes

NAME = "checkpoint.safetensors"


@dataclass
class Position:
    """How far a training is.

    Attributes:
        step: optimizer steps that were made.
        best: the best held-out score, and `best_epoch` the epoch after which it was found.
        loss: sum of the losses of this epoch's steps, and `losses` how many they are.
        scores: the held-out score after every epoch.
        scaler: what the fp16 scaler remembers.
    """

    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    loss: float = 0.0
    losses: int = 0
    scores: list[float] = field(default_factory=list)
    scaler: Mapping[str, Any] = field(default_factory=dict)


def tensors_of(module: Any) -> dict[str, Any]:
    """Every parameter and buffer, those that no state dict holds too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copied(module: Any) -> dict[str, Any]:
    """The values of `tensors_of`, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in tensors_of(module).items()}


def put_back(module: Any, values: Mapping[str, Any]) -> None:
    """Give a module the values that `copied` took."""
    import torch

    with torch.no_grad():
        for name, tensor in tensors_of(module).items():
            tensor.copy_(values[name])


def save(
    folder: Path, position: Position, module: Any, optimizer: Any, best: Mapping[str, Any] | None
) -> None:
    """Write the checkpoint, whole or not at all; the main process alone. Raises HostError."""
    if not processes.is_main():
        return
    from safetensors.torch import save as written

    tensors = {f"module/{name}": value for name, value in copied(module).items()}
    for index, remembered in optimizer.state_dict()["state"].items():
        for key, value in remembered.items():
            if value is not None:
                tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().clone()
    tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files.write(folder / NAME, written(tensors, {"position": json.dumps(vars(position))}))


def load(folder: Path, module: Any, optimizer: Any) -> tuple[Position, dict[str, Any] | None]:
    """Put module and optimizer where the checkpoint was; its position and best weights.

    Without one, the beginning. Every process gets what the main one finds.
    """
    path = folder / NAME
    data = path.read_bytes() if processes.is_main() and path.exists() else None
    data = processes.broadcast(data)
    if data is None:
        return Position(), None
    from safetensors.torch import load as read

    tensors = read(data)
    length = int.from_bytes(data[:8], "little")
    position = json.loads(data[8 : 8 + length])["__metadata__"]["position"]
    put_back(module, _under("module/", tensors))
    remembered: dict[int, dict[str, Any]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        index, _, key = name.partition("/")
        remembered.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": remembered, "param_groups": groups})
    return Position(**json.loads(position)), _under("best/", tensors) or None


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
