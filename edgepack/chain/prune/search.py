"""Which channels go, until the budget is met. Only importable where torch is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgepack.chain.prune.cut import Cut, cut
from edgepack.chain.prune.graph import Group

# The share of a group that stays whatever its importance: a layer of few channels is a bottleneck.
LEAST = 0.1


class Ranking:
    """The units of all groups, the least important first.

    Args:
        groups: what can go.
        importance: of each group's units.
        per_layer: whether every group loses the same share.
        round_to: channels stay a multiple of it; heads do not count.
    """

    def __init__(
        self, groups: Sequence[Group], importance: Sequence[Any], per_layer: bool, round_to: int
    ) -> None:
        self.groups, self.per_layer, self.round_to = groups, per_layer, round_to
        self.order = [np.argsort(found.numpy(), kind="stable") for found in importance]
        pairs = [(float(x), i) for i, found in enumerate(importance) for x in found]
        # Of equals those of the earlier group; nothing is left to chance.
        self.owners = np.array([owner for _, owner in sorted(pairs)])

    @property
    def steps(self) -> int:
        """How far it can go."""
        return len(self.owners)

    def gone(self, step: int) -> list[list[int]]:
        """The units of every group that are gone after so many of all."""
        if self.per_layer:
            share = step / self.steps
            wanted = [math.floor(share * len(group.units)) for group in self.groups]
        else:
            wanted = np.bincount(self.owners[:step], minlength=len(self.groups)).tolist()
        return [
            sorted(order[: self._rounded(group, count)].tolist())
            for group, order, count in zip(self.groups, self.order, wanted, strict=True)
        ]

    def cut(self, step: int) -> Cut:
        """What is taken out then."""
        found = Cut()
        for group, gone in zip(self.groups, self.gone(step), strict=True):
            if gone:
                found.add(group.cut(gone))
        return found

    def _rounded(self, group: Group, count: int) -> int:
        """How many units of a group can go where so many should."""
        units = len(group.units)
        multiple = 1 if group.heads else self.round_to // math.gcd(
            self.round_to, group.channels // units
        )  # fmt: skip
        kept = max(units - count, math.ceil(LEAST * units), 1)
        kept = math.ceil(kept / multiple) * multiple
        return max(units - kept, 0)


def smallest_step(ranking: Ranking, fits: Callable[[int], bool]) -> int | None:
    """The least that meets a budget, by bisection; None where even everything does not."""
    low, high = 0, ranking.steps
    if not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def without(module: Any, what: Cut) -> Any:
    """A copy of a network without some channels."""
    made = copy.deepcopy(module)
    cut(made, what)
    return made
