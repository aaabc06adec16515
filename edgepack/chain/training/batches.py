"""Which samples every step learns from: a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.data.store import Group


@dataclass(frozen=True)
class Plan:
    """How the samples are cut into steps.

    Attributes:
        groups: what can share a batch, the held-out samples taken out.
        batch_size: samples of a step, over all processes.
        parts: processes times the parts in which each computes its share.
        exact: the number of samples that every part must have, where the model says so.
        seed: of the order.
    """

    groups: tuple[Group, ...]
    batch_size: int
    parts: int
    exact: int | None
    seed: int

    def steps(self) -> int:
        """Number of steps in every epoch."""
        return sum(len(self._cuts(len(group.members), group.whole)) for group in self.groups)

    def epoch(self, epoch: int) -> list[list[np.ndarray]]:
        """The steps of an epoch, each the parts that it is computed in, over all processes."""
        generator = np.random.default_rng([self.seed, epoch])
        steps = []
        for group in self.groups:
            order = generator.permutation(group.members)
            for start, end in self._cuts(len(order), group.whole):
                steps.append(self._parts(order[start:end], group.whole))
        return [steps[i] for i in generator.permutation(len(steps))]

    def _cuts(self, count: int, whole: bool) -> list[tuple[int, int]]:
        """Where the batches of a group begin and end.

        A rest of half a batch or more is one too; a smaller one only where it is all there is. Each
        can be cut into the parts.
        """
        unit = self.parts * (1 if whole else self.exact or 1)
        size = max(self.batch_size // unit, 1) * unit
        cuts = [(start, start + size) for start in range(0, count - size + 1, size)]
        rest = (count - len(cuts) * size) // unit * unit
        if rest and (not cuts or 2 * rest >= size):
            cuts.append((len(cuts) * size, len(cuts) * size + rest))
        return cuts

    def _parts(self, members: np.ndarray, whole: bool) -> list[np.ndarray]:
        length = 1 if whole else self.exact or len(members) // self.parts
        return [members[i : i + length] for i in range(0, len(members), length)]


def hold_out(groups: Sequence[Group], share: float, seed: int) -> tuple[np.ndarray, list[Group]]:
    """Take a share of the samples out, at random; the others stay in their groups.

    Returns:
        The positions that were taken, ascending, and what is left of each group.
    """
    count = sum(len(group.members) for group in groups)
    generator = np.random.default_rng([seed, count])
    taken = np.zeros(count, bool)
    taken[generator.permutation(count)[: int(share * count)]] = True
    left = [
        Group(group.shapes, group.whole, group.members[~taken[group.members]]) for group in groups
    ]
    return np.flatnonzero(taken), [group for group in left if len(group.members)]


def in_groups(
    groups: Sequence[Group], members: np.ndarray, size: int, exact: int | None
) -> Iterator[np.ndarray]:
    """Some samples in batches for running alone: at most `size`, or exactly what the model takes.

    Where the model takes an exact number, a rest that does not fill a batch is left out.
    """
    for group in groups:
        found = np.intersect1d(group.members, members, assume_unique=True)
        length = 1 if group.whole else exact or size
        for start in range(0, len(found), length):
            batch = found[start : start + length]
            if group.whole or exact is None or len(batch) == exact:
                yield batch
