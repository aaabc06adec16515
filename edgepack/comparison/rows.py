"""Rows of a comparison."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure of both bundles.

    Attributes:
        kind: what is compared: "size", "latency", "metric", "gate", "layer".
        name: which one: an output, a gate, a layer.
        old: the figure of the old bundle, as text.
        new: the figure of the new one, as text.
        change: the difference, as text; "" for none.
        regressed: true if the new one is worse by more than the tolerance.
        values: both figures as numbers, None where one is exact; empty if they are not numbers.
        held: of a gate, true if both bundles met it.
    """

    kind: str
    name: str
    old: str
    new: str
    change: str
    regressed: bool = False
    values: tuple[float | None, ...] = ()
    held: bool = False

    def describe(self) -> str:
        """Return the row in one line: "size of model: 3.40 MB → 3.52 MB, +3.5 %"."""
        text = f"{self.kind} of {self.name}: {self.old} → {self.new}"
        if self.change:
            text += f", {self.change}"
        return text

    def to_json(self) -> dict[str, object]:
        """Return the row as JSON values; figures as numbers where they are numbers."""
        # Text such as "3.40 MB" is for readers; programs get 3400000.
        old: object = self.old
        new: object = self.new
        if self.values:
            old, new = self.values
        return {
            "kind": self.kind,
            "name": self.name,
            "old": old,
            "new": new,
            "change": self.change,
            "regressed": self.regressed,
        }
