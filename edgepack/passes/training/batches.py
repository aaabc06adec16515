"""Samples of each training step, as a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.data.store import Group


@dataclass(frozen=True)
class Plan:
    """Division of the samples into steps.

    Attributes:
        groups: samples that can share a batch, without the held-out ones.
        batch_size: samples of a step, over all processes.
        parts: number of processes times the accumulated parts of each.
        exact: number of samples of each part if the model has a fixed batch size, else None.
        seed: of the order.
    """

    groups: tuple[Group, ...]
    batch_size: int
    parts: int
    exact: int | None
    seed: int

    def steps(self) -> int:
        """Return the number of steps per epoch."""
        return sum(len(self._list_bounds(len(group.members), group.whole)) for group in self.groups)

    def epoch(self, epoch: int) -> list[list[np.ndarray]]:
        """Return the steps of an epoch, each as a list of its parts over all processes."""
        # Shuffled twice: samples within each group, then the steps of all groups.
        generator = np.random.default_rng([self.seed, epoch])
        steps = []
        for group in self.groups:
            order = generator.permutation(group.members)
            for start, end in self._list_bounds(len(order), group.whole):
                steps.append(self._divide(order[start:end], group.whole))
        return [steps[i] for i in generator.permutation(len(steps))]

    def _list_bounds(self, count: int, whole: bool) -> list[tuple[int, int]]:
        """Return the bounds of the batches of a group, each divisible into the parts.

        A remainder of at least half a batch is a batch too; a smaller one only if the group has no
        other. With batches of 16 in 2 parts, 43 samples give (0, 16), (16, 32) and (32, 42); the
        last sample is left out, since the remainder of 11 is odd.
        """
        unit = self.parts
        if not whole:
            unit *= self.exact or 1
        # With 3 parts of exactly 8 samples a step of 128 becomes 120, a multiple of 24.
        size = max(self.batch_size // unit, 1) * unit
        bounds = [(start, start + size) for start in range(0, count - size + 1, size)]
        end = len(bounds) * size
        rest = (count - end) // unit * unit
        if rest and (not bounds or 2 * rest >= size):
            bounds.append((end, end + rest))
        return bounds

    def _divide(self, members: np.ndarray, whole: bool) -> list[np.ndarray]:
        """Divide a batch into its parts; a whole feed is a part of its own."""
        length = self.exact or len(members) // self.parts
        if whole:
            length = 1
        return [members[i : i + length] for i in range(0, len(members), length)]


def hold_out(groups: Sequence[Group], share: float, seed: int) -> tuple[np.ndarray, list[Group]]:
    """Hold out a random share of the samples; the others remain in their groups.

    Returns:
        Positions of the held-out samples, ascending, and the groups without them.
    """
    count = sum(len(group.members) for group in groups)
    generator = np.random.default_rng([seed, count])
    held_out = np.zeros(count, bool)
    held_out[generator.permutation(count)[: int(share * count)]] = True
    remaining = []
    for group in groups:
        # Members are positions among all samples: [4, 5, 6] without 5 is [4, 6].
        members = group.members[~held_out[group.members]]
        if len(members):
            remaining.append(Group(group.shapes, group.whole, members))
    return np.flatnonzero(held_out), remaining


def batch_groups(
    groups: Sequence[Group], members: np.ndarray, size: int, exact: int | None
) -> Iterator[np.ndarray]:
    """Yield batches of some samples for inference: at most `size`, or the model's fixed batch size.

    With a fixed batch size, a remainder that does not fill a batch is dropped.
    """
    for group in groups:
        positions = np.intersect1d(group.members, members, assume_unique=True)
        length = exact or size
        if group.whole:
            length = 1
        for start in range(0, len(positions), length):
            batch = positions[start : start + length]
            if group.whole or exact is None or len(batch) == exact:
                yield batch
