"""Axes of tensors that belong together."""

from __future__ import annotations

from collections.abc import Iterator

# A tensor's name, and the axis.
Axis = tuple[str, int]


class Ties:
    """Classes of axes: a disjoint-set forest with path halving (Tarjan and van Leeuwen, 1984)."""

    def __init__(self) -> None:
        self._parent: dict[Axis, Axis] = {}

    def __iter__(self) -> Iterator[Axis]:
        """Iterate over the axes in the order of their first mention."""
        return iter(self._parent)

    def root(self, axis: Axis) -> Axis:
        """Return the axis that stands for the class; a new axis is a class of its own."""
        self._parent.setdefault(axis, axis)
        while self._parent[axis] != axis:
            self._parent[axis] = self._parent[self._parent[axis]]
            axis = self._parent[axis]
        return axis

    def tie(self, first: Axis, second: Axis) -> None:
        """Make one class of two."""
        self._parent[self.root(first)] = self.root(second)
