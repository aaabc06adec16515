"""Selection of the channels to remove within a budget. Importing this module needs torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgepack.passes.prune.cut import Cut, cut
from edgepack.passes.prune.group import Group

if TYPE_CHECKING:
    import torch
    from torch import nn

# Share of a group that always remains: a layer with very few channels becomes a bottleneck.
LEAST = 0.1


class Ranking:
    """Units of all groups, ordered from the least important.

    A cut is addressed by a step, the number of units to remove from the whole network. With two
    groups of importance [3, 1] and [2], step 1 removes unit 1 of the first group, step 2 also
    unit 0 of the second.

    Args:
        groups: groups of channels that can be removed.
        importance: tensors [units] of each group.
        per_layer: remove the same share of every group.
        round_to: keep channels a multiple of this; does not apply to heads.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        importance: Sequence[torch.Tensor],
        per_layer: bool,
        round_to: int,
    ) -> None:
        self.groups, self.per_layer, self.round_to = groups, per_layer, round_to
        # Units of each group, from the least important.
        self.order: list[np.ndarray] = []
        pairs: list[tuple[float, int]] = []
        for index, scores in enumerate(importance):
            self.order.append(np.argsort(scores.numpy(), kind="stable"))
            for score in scores.tolist():
                pairs.append((score, index))
        # The group that loses a unit at each step, [0, 1, 0] in the example above. Ties are broken
        # by the index of the group, so that the order is deterministic.
        self.owners = np.array([owner for _, owner in sorted(pairs)])

    @property
    def steps(self) -> int:
        """Return the largest step, the number of all units."""
        return len(self.owners)

    def select_units(self, step: int) -> list[list[int]]:
        """Return the units of each group that a step removes, by their indices."""
        if self.per_layer:
            # Half of the steps remove half of the units of every group, rounded down.
            share = step / self.steps
            counts = [math.floor(share * len(group.units)) for group in self.groups]
        else:
            counts = np.bincount(self.owners[:step], minlength=len(self.groups)).tolist()
        units = []
        for group, order, count in zip(self.groups, self.order, counts, strict=True):
            least_important = order[: self._round_count(group, count)]
            units.append(sorted(least_important.tolist()))
        return units

    def cut(self, step: int) -> Cut:
        """Return the cut of a step."""
        result = Cut()
        for group, units in zip(self.groups, self.select_units(step), strict=True):
            if units:
                result.add(group.cut(units))
        return result

    def _round_count(self, group: Group, count: int) -> int:
        """Round the number of units to remove from a group down to a permitted one.

        With 64 channels, one per unit, and round_to = 8, removing 13 would leave 51; 56 is the next
        multiple, so 8 are removed.
        """
        units = len(group.units)
        multiple = 1
        if not group.heads:
            # A unit of 2 channels needs only multiples of 4 units for a multiple of 8 channels.
            multiple = self.round_to // math.gcd(self.round_to, group.channels // units)
        remaining = max(units - count, math.ceil(LEAST * units), 1)
        remaining = math.ceil(remaining / multiple) * multiple
        return max(units - remaining, 0)


def find_smallest_step(ranking: Ranking, fits: Callable[[int], bool]) -> int | None:
    """Return the smallest step that meets a budget, by bisection; None if no step does."""
    # Steps above `low` may fit, `high` always does. Of 4 steps that fit from 3 on, steps 4, 2 and 3
    # are measured.
    low, high = 0, ranking.steps
    if not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def copy_without(module: nn.Module, slices: Cut) -> nn.Module:
    """Return a copy of a network without some channels."""
    network = copy.deepcopy(module)
    cut(network, slices)
    return network
