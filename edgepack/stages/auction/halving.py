"""Successive halving: latency of candidates on this machine, cheap turns first.

Every candidate runs in a process of its own for a short turn. Those that are far behind drop out,
and the others take more and longer turns, A B C A B C, until few are left:

    int8 0.31 ms, fp32 0.72, dynamic 1.60   ->   int8 0.312, fp32 0.706   ->   int8
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from edgepack.errors import HostError
from edgepack.stages.auction.candidate import Candidate
from edgepack.timing import Subject, Worker

# Turns, their seconds, and the largest ratio to the fastest that stays in after them.
STAGES = ((2, 0.04, 1.6), (2, 0.08, 1.25), (5, 0.1, math.inf))
# Shares of the latency that count as noise, at least and at most; measured in between.
LEAST_NOISE, MOST_NOISE = 0.03, 0.15


@dataclass(frozen=True)
class Timed:
    """Latency of one candidate.

    Attributes:
        p50: median of its turns, in ms; infinity if it did not run.
        peak_rss: peak memory of its process, in bytes.
        rounds: medians of its turns.
        queries: number of timed calls.
        reason: reason why it was not measured to the end; "" for a finalist.
    """

    p50: float
    peak_rss: int
    rounds: Sequence[float]
    queries: int
    reason: str = ""


class TimeCost:
    """Cost by the clock, on this machine.

    Args:
        feed: input of one inference.
        budget: seconds after which no further candidate is started.

    Attributes:
        results: of the last measurement, in the order of its candidates.
    """

    unit = "ms"

    def __init__(self, feed: Mapping[str, np.ndarray], budget: float) -> None:
        self.noise = LEAST_NOISE
        self.results: list[Timed] = []
        self._feed, self._budget = feed, budget

    def measure(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the median latency of every candidate; the first takes part to the end."""
        started = time.perf_counter()
        with ExitStack() as stack:
            heat = _Heat()
            for i, candidate in enumerate(candidates):
                # Two are always compared, however long they take.
                if i > 1 and time.perf_counter() - started > self._budget:
                    heat.reasons[i] = "not measured: the auction had spent its time"
                    continue
                worker = stack.enter_context(Worker(_make_subject(candidate), self._feed))
                heat.enter(i, worker)
            for stage in STAGES[1:]:
                heat.run(*stage)
            self.noise = heat.find_noise()
            self.results = [heat.summarize(i) for i in range(len(candidates))]
        return [result.p50 for result in self.results]


class _Heat:
    """Candidates by their position: those that still run, and the reasons of the others."""

    def __init__(self) -> None:
        self.running: dict[int, Worker] = {}
        self.ended: dict[int, Worker] = {}
        self.reasons: dict[int, str] = {}

    def enter(self, position: int, worker: Worker) -> None:
        """Start a candidate and let it take its first turns."""
        turns, seconds, limit = STAGES[0]
        try:
            worker.wait()
            for _ in range(turns):
                worker.turn(seconds)
        except HostError as error:
            worker.close()
            self.reasons[position] = f"does not run: {(error.why or error.what).splitlines()[0]}"
            return
        self.running[position] = worker
        # One that is far behind frees its memory before the next one starts.
        self._drop(limit)

    def run(self, turns: int, seconds: float, limit: float) -> None:
        """Let the running candidates take turns, and drop the slow ones."""
        for _ in range(turns):
            for worker in self.running.values():
                worker.turn(seconds)
        self._drop(limit)

    def _drop(self, limit: float) -> None:
        fastest = min((worker.median for worker in self.running.values()), default=0.0)
        for position, worker in list(self.running.items()):
            ratio = worker.median / fastest
            # The first is what the others are compared with.
            if position and ratio > limit:
                self.reasons[position] = f"takes {ratio:.2f} times as long as the fastest"
                self.ended[position] = self.running.pop(position)
                worker.close()

    def find_noise(self) -> float:
        """Return the share by which the turns of the finalists vary about their median."""
        shares = [LEAST_NOISE]
        for worker in self.running.values():
            deviations = [abs(turn / worker.median - 1) for turn in worker.rounds]
            shares.append(statistics.median(deviations))
        return min(max(shares), MOST_NOISE)

    def summarize(self, position: int) -> Timed:
        """Return the latency of a candidate."""
        reason = self.reasons.get(position, "")
        worker = self.running.get(position) or self.ended.get(position)
        if worker is None:
            return Timed(math.inf, 0, (), 0, reason)
        return Timed(worker.median, worker.peak_rss, worker.rounds, worker.queries, reason)


def _make_subject(candidate: Candidate) -> Subject:
    graph, variant = candidate.graph, candidate.variant
    return Subject(graph.model, graph.inputs, graph.outputs, variant.engine, variant.settings)
