"""Choice of the rank of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import ChainError


@dataclass(frozen=True)
class Choice:
    """Possible ranks of a layer.

    Attributes:
        name: of the layer.
        parameters: number of its parameters before factorization.
        ranks: the ranks that save parameters, ascending.
        sizes: number of parameters at each rank.
        lost: share of the layer's energy lost at each rank.
    """

    name: str
    parameters: int
    ranks: tuple[int, ...]
    sizes: tuple[int, ...]
    lost: tuple[float, ...]


def choose_by_loss(choice: Choice, allowed: float) -> int | None:
    """Return the smallest rank that loses at most a share of the energy; None if none does."""
    # The ranks ascend, so the first one that fits is the smallest.
    for rank, lost in zip(choice.ranks, choice.lost, strict=True):
        if lost <= allowed:
            return rank
    return None


def choose_by_budget(choices: Sequence[Choice], share: float) -> dict[str, int]:
    """Choose the ranks with the least error at which all layers retain a share of their parameters.

    Starting from the unfactorized layers, each step reduces the layer with the least relative error
    per parameter saved, along the lower convex hull of its error over its size. The last step goes
    only as far as the budget requires.

    Returns:
        the rank of every layer to factorize; the others remain unchanged.

    Raises ChainError `factorize-budget` if the smallest ranks exceed the budget.
    """
    total = smallest = 0
    for choice in choices:
        total += choice.parameters
        # A layer that no rank makes smaller stays as it is.
        smallest += min(choice.sizes, default=choice.parameters)
    budget = share * total
    if smallest > budget:
        raise ChainError(
            "factorize-budget",
            f"the layers cannot be reduced to {share:g} of their parameters",
            why=f"{smallest:,} of {total:,} ({smallest / total:.3f}) remain at the smallest ranks",
            hint=f"parameters={np.ceil(100 * smallest / total) / 100:g}, or a smaller round_to",
        )
    # The hull of each layer gets steeper with each step, so sorting keeps a layer's steps in order.
    steps: list[tuple[float, str, int]] = []
    sizes: dict[str, int] = {}
    for choice in choices:
        steps += _list_steps(choice)
        sizes[choice.name] = choice.parameters
    steps.sort()
    ranks: dict[str, int] = {}
    by_name = {choice.name: choice for choice in choices}
    # Parameters still to be saved.
    over = total - budget
    for _, name, index in steps:
        if over <= 0:
            break
        choice = by_name[name]
        # The last step may overshoot: take the largest rank whose saving still suffices. With 30
        # to save, a step from 100 to 20 stops at the rank that leaves 70.
        for larger in range(index + 1, len(choice.ranks)):
            if sizes[name] - choice.sizes[larger] >= over:
                index = larger
        over -= sizes[name] - choice.sizes[index]
        sizes[name] = choice.sizes[index]
        ranks[name] = choice.ranks[index]
    return ranks


def _list_steps(choice: Choice) -> list[tuple[float, str, int]]:
    """Return error per parameter, name and rank index of each step down the convex hull.

    A layer of 100 parameters that loses 0.1 at 60 and 0.5 at 20 has the slopes 0.1 / 40 and then
    0.4 / 40: first to the larger rank, then to the smaller one.
    """
    steps = []
    size, lost, index = choice.parameters, 0.0, len(choice.ranks)
    # From the current point, the flattest slope to any smaller rank is the next edge of the hull.
    while index:
        slopes = [((choice.lost[i] - lost) / (size - choice.sizes[i]), i) for i in range(index)]
        slope, index = min(slopes)
        steps.append((slope, choice.name, index))
        size, lost = choice.sizes[index], choice.lost[index]
    return steps
