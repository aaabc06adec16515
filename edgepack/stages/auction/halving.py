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
from edgepack.runtime.bundle.engines import OPENVINO
from edgepack.runtime.commands.load import LoadMonitor, disturbances
from edgepack.stages.auction.candidate import Candidate
from edgepack.timing import Subject, Worker

# Turns, their seconds, and the largest ratio to the fastest that stays in after them.
STAGES = ((3, 0.04, 1.6), (2, 0.08, 1.25), (5, 0.1, math.inf))
# Largest ratio to the fastest that more turns may reverse.
NEAR = 1.6
# Shares of the latency that count as noise, at least and at most; measured in between.
LEAST_NOISE, MOST_NOISE = 0.03, 0.15
# Milliseconds that a call of OpenVINO takes at least: 0.045 where onnxruntime takes 0.02.
OPENVINO_FLOOR = 0.03
# Bytes of the models that start at the same time; larger ones start one by one.
TOGETHER = 256 << 20
LATE = "not measured: the auction had spent its time"


@dataclass(frozen=True)
class Timed:
    """Latency of one candidate.

    Attributes:
        p50: median of its fastest turn, in ms; infinity if it did not run.
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
        disturbed: reasons not to rely on it; empty on a quiet machine.
    """

    unit = "ms"

    def __init__(self, feed: Mapping[str, np.ndarray], budget: float) -> None:
        self.noise = LEAST_NOISE
        self.results: list[Timed] = []
        self.disturbed: list[str] = []
        self._feed, self._budget = feed, budget

    def measure(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the median latency of every candidate; the first takes part to the end."""
        until, monitor = time.perf_counter() + self._budget, LoadMonitor()
        with ExitStack() as stack:
            heat = _Heat()
            for positions in _group(candidates):
                workers = {}
                for i in positions:
                    if candidates[i].engine == OPENVINO and heat.fastest < OPENVINO_FLOOR:
                        heat.reasons[i] = "not measured: its calls alone take longer"
                        continue
                    # Two are always compared, however long they take.
                    if i > 1 and time.perf_counter() > until:
                        heat.reasons[i] = LATE
                        continue
                    subject = _make_subject(candidates[i])
                    workers[i] = stack.enter_context(Worker(subject, self._feed))
                heat.enter(workers, until)
            for stage in STAGES[1:]:
                heat.run(*stage)
            self.noise = heat.find_noise()
            self.results = [heat.summarize(i) for i in range(len(candidates))]
        # The processes have ended, so that their time counts as this process's own.
        self.disturbed = disturbances(monitor.result(), 0.0, 0)
        return [result.p50 for result in self.results]


class _Heat:
    """Candidates by their position: those that still run, and the reasons of the others."""

    def __init__(self) -> None:
        self.running: dict[int, Worker] = {}
        self.ended: dict[int, Worker] = {}
        self.reasons: dict[int, str] = {}

    @property
    def fastest(self) -> float:
        """Latency of the fastest candidate so far, in ms; infinity for none."""
        return min((worker.best for worker in self.running.values()), default=math.inf)

    def enter(self, workers: Mapping[int, Worker], until: float) -> None:
        """Wait for starting candidates, and let each take its first turns.

        Args:
            workers: the candidates by their position.
            until: time after which all but the first two are given up.
        """
        turns, seconds, limit = STAGES[0]
        # No turn is timed while another process starts.
        for position, worker in workers.items():
            patience = max(until - time.perf_counter(), 0.0) if position > 1 else None
            try:
                ready = worker.wait(patience)
            except HostError as error:
                self._refuse(position, worker, error)
                continue
            if ready:
                self.running[position] = worker
            else:
                worker.close()
                self.reasons[position] = LATE
        for _ in range(turns):
            for position in sorted(workers.keys() & self.running.keys()):
                try:
                    workers[position].turn(seconds)
                except HostError as error:
                    self._refuse(position, self.running.pop(position), error)
        self._drop(limit)

    def _refuse(self, position: int, worker: Worker, error: HostError) -> None:
        worker.close()
        self.reasons[position] = f"does not run: {(error.why or error.what).splitlines()[0]}"

    def run(self, turns: int, seconds: float, limit: float) -> None:
        """Let the candidates that may win take turns, and drop the slow ones."""
        rivals = []
        for position, worker in self.running.items():
            # The first takes every turn, since the report states ratios to it, and first turns are
            # slower than later ones: their memory is new.
            if position == 0 or worker.best <= NEAR * self.fastest:
                rivals.append(worker)
        for _ in range(turns):
            for worker in rivals:
                worker.turn(seconds)
        self._drop(limit)

    def _drop(self, limit: float) -> None:
        fastest = self.fastest
        for position, worker in list(self.running.items()):
            ratio = worker.best / fastest
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
        return Timed(worker.best, worker.peak_rss, worker.rounds, worker.queries, reason)


def _group(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Return the positions of candidates that start together: those of one engine, if small."""
    if sum(candidate.bytes for candidate in candidates) > TOGETHER:
        return [[i] for i in range(len(candidates))]
    groups: dict[str, list[int]] = {}
    for i, candidate in enumerate(candidates):
        groups.setdefault(candidate.engine, []).append(i)
    return list(groups.values())


def _make_subject(candidate: Candidate) -> Subject:
    graph, variant = candidate.graph, candidate.variant
    return Subject(graph.model, graph.inputs, graph.outputs, variant.engine, variant.settings)
