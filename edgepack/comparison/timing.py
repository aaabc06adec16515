"""Latency of two bundles, measured by turns until their ratio is known well enough."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from math import comb

from edgepack.device import Local
from edgepack.errors import DeviceError, EdgepackError
from edgepack.runtime.commands.bench import percentiles
from edgepack.runtime.commands.load import LoadMonitor, disturbances, spread_of

# Rounds of one turn each: the fewest, and the most where the ratio is close to the tolerance.
LEAST, MOST = 9, 27
# A turn's queries and seconds at least.
QUERIES, SECONDS = 20, 0.25
# Probability that the true ratio is beyond one end of the interval.
DOUBT = 0.01


@dataclass(frozen=True)
class Latency:
    """Latencies of two bundles, measured by turns.

    Attributes:
        old: p50 of the old bundle in ms: the median of its turns.
        new: p50 of the new one.
        ratio: median of the rounds' ratios, new over old.
        low: lower end of the ratio's interval of 98 %.
        high: upper end.
        rounds: p50 of both in each round, in ms.
        disturbed: reasons not to rely on the figures; empty on a quiet machine.
    """

    old: float
    new: float
    ratio: float
    low: float
    high: float
    rounds: tuple[tuple[float, float], ...]
    disturbed: tuple[str, ...]

    def exceeds(self, tolerance: float) -> bool:
        """Return True if the new bundle is slower beyond doubt: the interval is above the bound."""
        return self.low > 1 + tolerance

    def is_inconclusive(self, tolerance: float) -> bool:
        """Return True if the interval of the ratio contains the bound."""
        return self.low <= 1 + tolerance <= self.high

    def to_json(self) -> dict[str, object]:
        """Return the latencies as JSON values."""
        return {
            "unit": "ms",
            "old": self.old,
            "new": self.new,
            "ratio": self.ratio,
            "interval": [self.low, self.high],
            "rounds": [{"old": old, "new": new} for old, new in self.rounds],
            "disturbed": list(self.disturbed),
        }


def measure(old: str, new: str, host: Local, threads: int, tolerance: float) -> Latency:
    """Measure two bundles by turns, each in a process of its own.

    A machine that slows down slows both sides of a round, so the ratio of each round counts, and
    the bundle that begins alternates. More rounds follow while the interval contains the bound.

    Args:
        old: path of the old bundle.
        new: path of the new one.
        host: this machine.
        threads: threads within an operator; 0 takes every physical core.
        tolerance: allowed slow-down, such as 0.1.

    Raises the loader's errors.
    """
    monitor = LoadMonitor()
    rounds: list[tuple[float, float]] = []
    # With a tolerance of 0.1 an interval of 1.02 to 1.07 decides, one of 1.02 to 1.15 does not.
    low, high = 0.0, float("inf")
    while len(rounds) < LEAST or (len(rounds) < MOST and low <= 1 + tolerance <= high):
        first, second = old, new
        if len(rounds) % 2:
            first, second = new, old
        times = {first: _time_turn(host, first, threads)}
        # The same file twice has two entries of one name: the second turn is then the new one's.
        other = _time_turn(host, second, threads)
        if first == old:
            rounds.append((times[first], other))
        else:
            rounds.append((other, times[first]))
        low, high = find_interval([after / before for before, after in rounds])
    ratios = [after / before for before, after in rounds]
    spread = _spread_middle(ratios)
    return Latency(
        old=statistics.median(before for before, _ in rounds),
        new=statistics.median(after for _, after in rounds),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        rounds=tuple(rounds),
        disturbed=tuple(disturbances(monitor.result(), spread, threads)),
    )


def find_interval(ratios: list[float]) -> tuple[float, float]:
    """Return an interval that contains the true median with a probability of 1 - 2 DOUBT.

    Its ends are order statistics, so no distribution is assumed: of 9 rounds all would have to lie
    on one side of the median (1 in 512) for it to be outside of the smallest and the largest.
    """
    ordered, count = sorted(ratios), len(ratios)
    # P(at most `skipped` of `count` rounds are below the median), for a fair coin.
    skipped, chance = -1, 0.0
    while chance <= DOUBT:
        skipped += 1
        chance += comb(count, skipped) / 2**count
    skipped = max(skipped - 1, 0)
    return ordered[skipped], ordered[count - 1 - skipped]


def _spread_middle(ratios: list[float]) -> float:
    """Return the spread of the middle half of the rounds: outliers among many say nothing."""
    # 12 rounds: the three fastest and the three slowest do not count.
    ordered = sorted(ratios)
    quarter = len(ordered) // 4
    return spread_of(ordered[quarter : len(ordered) - quarter])


def _time_turn(host: Local, bundle: str, threads: int) -> float:
    """Return the p50 of one turn in ms."""
    arguments = (f"--queries={QUERIES}", f"--seconds={SECONDS}", f"--threads={threads}")
    finished = host.run(bundle, "bench-turn", *arguments)
    try:
        document = json.loads(finished.stdout)
    except ValueError as error:
        raise DeviceError(
            "bench-failed",
            "the process that measures the latency failed",
            why=finished.stderr.strip()[-2000:] or f"exit status {finished.status}",
            hint=f"edgepack verify {bundle} shows if the bundle runs here at all",
        ) from error
    if "error" in document:
        fault = document["error"]
        raise EdgepackError(fault["code"], fault["what"], why=fault["why"], hint=fault["hint"])
    p50 = percentiles(document["ns"])["p50"]
    return p50 or 0.0
