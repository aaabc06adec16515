"""How many directions of every layer stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import ChainError


@dataclass(frozen=True)
class Choice:
    """The ranks that a layer may have.

    Attributes:
        name: the layer's.
        whole: its parameters as it is.
        ranks: ascending; each makes it smaller.
        sizes: parameters at each.
        lost: share of its energy that each loses.
    """

    name: str
    whole: int
    ranks: tuple[int, ...]
    sizes: tuple[int, ...]
    lost: tuple[float, ...]


def by_loss(choice: Choice, allowed: float) -> int | None:
    """The smallest rank that loses at most that share of the energy; None where none does."""
    fitting = [
        rank for rank, lost in zip(choice.ranks, choice.lost, strict=True) if lost <= allowed
    ]
    return min(fitting, default=None)


def by_budget(choices: Sequence[Choice], share: float) -> dict[str, int]:
    """The ranks that lose least while all layers together keep a share of their parameters.

    Every step cuts where the least relative error is paid for a parameter, along the lower convex
    hull of each layer's error over its size, from the layers as they are on. Of the last step only
    as much is taken as the budget asks for.

    Returns:
        the rank of every layer that is cut; the others stay as they are.

    Raises ChainError `factorize-budget` where even the smallest ranks hold more.
    """
    total = sum(choice.whole for choice in choices)
    budget = share * total
    smallest = sum(choice.sizes[0] if choice.ranks else choice.whole for choice in choices)
    if smallest > budget:
        raise ChainError(
            "factorize-budget",
            f"the layers cannot be cut to {share:g} of their parameters",
            why=f"at the smallest ranks {smallest:,} of {total:,} stay, {smallest / total:.3f}",
            hint=f"parameters={np.ceil(100 * smallest / total) / 100:g}, or a smaller round_to",
        )
    steps = sorted(step for choice in choices for step in _steps(choice))
    found: dict[str, int] = {}
    by_name = {choice.name: choice for choice in choices}
    size = {choice.name: choice.whole for choice in choices}
    over = total - budget
    for _, name, index in steps:
        if over <= 0:
            break
        choice = by_name[name]
        enough = [
            i for i in range(index, len(choice.ranks)) if size[name] - choice.sizes[i] >= over
        ]
        index = max(enough, default=index)
        over -= size[name] - choice.sizes[index]
        size[name] = choice.sizes[index]
        found[name] = choice.ranks[index]
    return found


def _steps(choice: Choice) -> list[tuple[float, str, int]]:
    """Error per parameter, name and index of the rank, of each step down the convex hull."""
    steps = []
    size, lost, index = choice.whole, 0.0, len(choice.ranks)
    while index:
        slopes = [((choice.lost[i] - lost) / (size - choice.sizes[i]), i) for i in range(index)]
        slope, index = min(slopes)
        steps.append((slope, choice.name, index))
        size, lost = choice.sizes[index], choice.lost[index]
    return steps
