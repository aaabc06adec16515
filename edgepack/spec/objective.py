"""Objective of the auction: `--optimize`, and `optimize` in a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgepack.errors import SpecError
from edgepack.spec.suggestions import did_you_mean

LATENCY, SIZE, MEMORY, NONE = "latency", "size", "memory", "none"
GOALS = (LATENCY, SIZE, MEMORY)


@dataclass(frozen=True)
class Objective:
    """Weights of the costs that an auction compares.

    Attributes:
        weights: weight by goal, of GOALS; empty for no auction.
        requested: True if the user set it; else no form may be slower or larger than fp32.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {LATENCY: 1.0})
    requested: bool = False

    def __str__(self) -> str:
        # "latency", "none", or "latency=1,size=0.5".
        if len(self.weights) < 2:
            return next(iter(self.weights), NONE)
        return ",".join(f"{goal}={weight:g}" for goal, weight in self.weights.items())

    def score(self, ratios: Mapping[str, float]) -> float:
        """Return the logarithm of a weighted product of costs; smaller is better.

        With latency=1,size=0.5 a form of half the latency and a quarter of the bytes has
        ln 0.5 + 0.5 ln 0.25 = -1.39.

        Args:
            ratios: by goal, the cost over that of fp32.
        """
        return sum(weight * math.log(ratios[goal]) for goal, weight in self.weights.items())


def parse_objective(text: str) -> Objective:
    """Parse "latency", "size", "memory", "none", or weights such as "latency=1,size=0.5".

    "" is the default. Raises SpecError `optimize`.
    """
    if not text:
        return Objective()
    if text == NONE:
        return Objective({}, requested=True)
    if text in GOALS:
        return Objective({text: 1.0}, requested=True)
    weights: dict[str, float] = {}
    for part in text.split(","):
        goal, equals, number = part.strip().partition("=")
        weight = _parse_weight(number)
        if goal not in GOALS or goal in weights or weight is None:
            raise _make_error(text, goal if equals else part)
        weights[goal] = weight
    return Objective(weights, requested=True)


def _parse_weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 < weight <= 1000 else None


def _make_error(text: str, goal: str) -> SpecError:
    return SpecError(
        "optimize",
        f"there is no objective {text!r}",
        why=f"an objective is {', '.join(GOALS)} or {NONE}, or weights of the three"
        f"{did_you_mean(goal, (*GOALS, NONE))}",
        hint="--optimize latency, or --optimize latency=1,size=0.5",
    )
