"""Groups of channels that must be removed together, as lists of slices of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.passes.prune.cut import Cut


@dataclass(frozen=True)
class Slice:
    """Channels of one layer within a group.

    Attributes:
        name: of the layer or parameter.
        side: "outputs", "inputs", or "parameter".
        axis: the axis of a parameter.
        channels: indices of channels of the layer.
        roots: for each of them, the index of the root layer's output channel that it depends on.
    """

    name: str
    side: str
    axis: int
    channels: tuple[int, ...]
    roots: tuple[int, ...]

    def select_channels(self, roots: set[int]) -> set[int]:
        """Return the channels that depend on some channels of the root."""
        channels = set()
        for channel, root in zip(self.channels, self.roots, strict=True):
            if root in roots:
                channels.add(channel)
        return channels


@dataclass(frozen=True)
class Group:
    """Channels of several layers that must be removed together.

    Attributes:
        root: name of the layer whose output channels index the group.
        channels: number of these output channels.
        slices: the channels of all layers, including the root.
        units: smallest removable sets of root channels: single channels, one channel of each group
            of a grouped convolution, or the channels of an attention head.
        heads: True if the units are attention heads.
        sizes: attributes that count heads or their channels: module, attribute, value per unit.
    """

    root: str
    channels: int
    slices: tuple[Slice, ...]
    units: tuple[tuple[int, ...], ...] = ()
    heads: bool = False
    sizes: tuple[tuple[str, str, int], ...] = ()

    @property
    def producers(self) -> tuple[str, ...]:
        """Return the names of the layers whose output channels belong to the group."""
        return tuple(part.name for part in self.slices if part.side == "outputs")

    @property
    def members(self) -> set[tuple[str, str, int]]:
        """Return layer, side and index of every channel of the group."""
        members = set()
        for part in self.slices:
            for channel in part.channels:
                members.add((part.name, part.side, channel))
        return members

    def cut(self, removed: Sequence[int]) -> Cut:
        """Return the cut that removes some units, by their indices.

        If unit 1 is root channel 1, it takes channel 1 of the root, and the inputs 49 to 97 of a
        Linear that reads the root behind a flatten of a 7 x 7 window.
        """
        roots: set[int] = set()
        for unit in removed:
            roots.update(self.units[unit])
        result = Cut()
        for part in self.slices:
            channels = part.select_channels(roots)
            if part.side == "parameter":
                result.parameters[part.name] = (part.axis, channels)
            elif part.side == "outputs":
                result.outputs.setdefault(part.name, set()).update(channels)
            else:
                result.inputs.setdefault(part.name, set()).update(channels)
        remaining = len(self.units) - len(removed)
        for name, attribute, size in self.sizes:
            result.attributes.setdefault(name, {})[attribute] = remaining * size
        return result
