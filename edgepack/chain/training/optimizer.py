"""The optimizer, its rates, and the zeros that it must leave alone."""

from __future__ import annotations

from typing import Any

from edgepack.chain.training.options import TrainingOptions
from edgepack.chain.training.schedule import learning_rate, momentum
from edgepack.errors import ChainError

# Share of exact zeros from which a parameter was pruned: trained weights hold none.
PRUNED = 0.1


def make_optimizer(module: Any, options: TrainingOptions) -> Any:
    """The optimizer of a module's parameters. Raises ChainError training-nothing."""
    import torch

    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ChainError(
            "training-nothing",
            "the network has nothing to train",
            why="none of its parameters asks for a gradient",
            hint="leave requires_grad as it is when the network is built",
        )
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak)
    return torch.optim.SGD(
        groups, lr=options.peak, momentum=options.momentum, nesterov=options.momentum > 0
    )


def set_rates(optimizer: Any, options: TrainingOptions, step: int, steps: int) -> None:
    """Give the optimizer the learning rate and the momentum of a step."""
    found = momentum(options, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(options, step, steps)
        if found is not None and "betas" in group:
            group["betas"] = (found, group["betas"][1])
        elif found is not None and options.momentum > 0:
            group["momentum"] = found


def pruned(module: Any) -> list[tuple[Any, Any]]:
    """Parameters that were pruned, each with a mask that is 0 where it is zero.

    One that is zero altogether was not pruned: it has not been trained yet.
    """
    found = []
    for parameter in module.parameters():
        mask = (parameter.detach() != 0).to(parameter.dtype)
        if parameter.ndim > 1 and PRUNED <= 1 - float(mask.mean()) < 1:
            found.append((parameter, mask))
    return found
