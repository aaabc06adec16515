"""Interface of the cost of candidates, which the auction compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgepack.stages.auction.candidate import Candidate


class CostModel(Protocol):
    """Cost of one inference, by measurement on this machine or by counting for another one.

    Attributes:
        unit: unit of the cost, such as "ms" or "instructions".
        noise: share by which the costs of equal candidates differ; a smaller gain decides nothing.
    """

    unit: str
    noise: float

    def measure(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the cost of every candidate, in their order; infinity for one that fails."""
