"""Optimizer, its learning rates, and the masks of pruned weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import ChainError
from edgepack.passes.training.options import TrainingOptions
from edgepack.passes.training.schedule import compute_learning_rate, compute_momentum

if TYPE_CHECKING:
    import torch
    from torch import nn

# Share of exact zeros above which a parameter counts as pruned; trained weights have none.
PRUNED = 0.1


def make_optimizer(module: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Create the optimizer of a module's parameters. Raises ChainError training-nothing."""
    import torch

    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ChainError(
            "training-nothing",
            "the network has no parameter to train",
            why="none of its parameters requires a gradient",
            hint="do not disable requires_grad in the factory",
        )
    # Weight decay applies to matrices only, not to biases and the factors of norms.
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = []
    for parameters, decay in ((matrices, options.decay), (vectors, 0.0)):
        if parameters:
            groups.append({"params": parameters, "weight_decay": decay})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak)
    return torch.optim.SGD(
        groups, lr=options.peak, momentum=options.momentum, nesterov=options.momentum > 0
    )


def set_rates(
    optimizer: torch.optim.Optimizer, options: TrainingOptions, step: int, steps: int
) -> None:
    """Set the learning rate and the momentum of a step."""
    beta = compute_momentum(options, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = compute_learning_rate(options, step, steps)
        # Adam's first beta is its momentum; the second averages the squared gradients.
        if beta is not None and "betas" in group:
            group["betas"] = (beta, group["betas"][1])
        elif beta is not None and options.momentum > 0:
            group["momentum"] = beta


def find_pruned(module: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the pruned parameters, each with a mask that is 0 at its zeros.

    A parameter with only zeros is an untrained one, and does not count as pruned.
    """
    masks = []
    for parameter in module.parameters():
        # [[0, 2], [0, 5]] has the mask [[0, 1], [0, 1]], and a share of 0.5 of zeros.
        mask = (parameter.detach() != 0).to(parameter.dtype)
        if parameter.ndim > 1 and PRUNED <= 1 - float(mask.mean()) < 1:
            masks.append((parameter, mask))
    return masks
