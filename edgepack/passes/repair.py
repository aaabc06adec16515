"""Try quantizations of one model with different layers in float, to repair its quality.

Layers are ranked by their individual cost: the SNR of the network's outputs on calibration samples
when only that layer is quantized. Of many layers, only those that cost the most are measured alone.
The search returns the worst layers to float until the quality
gate passes; the caller evaluates the gate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.data.samples import Samples
from edgepack.ledger import Progress
from edgepack.metrics.closeness import closeness_db
from edgepack.onnx_tools.writer import serialised
from edgepack.passes.protocol import Trials
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.parity.parts import SNR_LIMIT

# Runs a serialised model: outputs in order, for arrays by input name.
Runs = Callable[[bytes], Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]]
# Number of samples for ranking layers.
RANKING_SAMPLES = 32
# Up to so many layers are measured one by one; of more, at most three quarters as many models run.
MEASURED_EACH = 16
# Number of groups that more layers are divided into at first. They run on every fourth feed.
GROUPS, GROUP_STRIDE = 8, 4
# Share of the noise that may come from layers that were not measured alone: 13 dB below the rest.
UNEXPLAINED = 0.05
# Number of layers of a repair that are tried as integers again, in case others suffice.
REQUANTIZED = 8


def select_feeds(samples: Samples, count: int, batch_size: int) -> list[Mapping[str, np.ndarray]]:
    """Select about `RANKING_SAMPLES` of `count` samples, evenly spread, as feeds."""
    # 100 samples in batches of 4 are 25 batches; 8 of them, evenly spread, hold 32 samples.
    batches = -(-count // batch_size)
    selected = min(batches, -(-RANKING_SAMPLES // batch_size))
    positions = {position * batches // selected for position in range(selected)}
    return [
        batch.inputs
        for position, batch in enumerate(samples.batches(batch_size))
        if position in positions
    ]


@dataclass(frozen=True)
class Ranking:
    """Layers of a model by their cost.

    Attributes:
        costs: SNR in dB of the worst output when only that layer is quantized, lowest first.
        estimated: layers that were only measured together with others; each has an equal share of
            their noise.
        runs: number of models that were run.
    """

    costs: Mapping[str, float]
    estimated: frozenset[str]
    runs: int


def rank_layers(
    trials: Trials,
    original: bytes,
    feeds: Sequence[Mapping[str, np.ndarray]],
    runs: Runs,
    make_parities: Callable[[], Sequence[Parity]],
    progress: Progress,
) -> Ranking:
    """Rank layers by the SNR in dB of the worst output when only that layer is quantized.

    Each of a few layers is measured. Of more, groups are measured, and those with the most noise
    are halved until single layers account for nearly all of the noise; the noise of independent
    roundings adds up.

    Args:
        trials: of the model.
        original: the float model.
        feeds: inputs for both.
        runs: runs a model.
        make_parities: returns a fresh comparison for each output.
        progress: advances with every model that is run.
    """
    # By name, so that the ranking does not depend on the positions in the graph.
    names = tuple(sorted(trials.names))
    meter = _Meter(trials, original, feeds, runs, make_parities)
    most, parts = len(names), len(names)
    if len(names) > MEASURED_EACH:
        most, parts = max(MEASURED_EACH, 3 * len(names) // 4), GROUPS
    groups = _divide(names, parts)
    progress.expect(most)
    # The noise of each group as a share of the signal: 20 dB is 0.01.
    noise: dict[tuple[str, ...], float] = {}
    while groups:
        for group in groups:
            noise[group] = 10.0 ** (-meter.snr_db(group) / 10.0)
            progress.advance()
            progress.tell(f"ranking {len(names)} layers: {_count_singles(noise)} measured alone")
        groups = []
        loudest = _find_loudest(noise)
        if loudest and meter.count + 2 <= most:
            del noise[loudest]
            groups = _divide(loudest, 2)
    costs: dict[str, float] = {}
    estimated: set[str] = set()
    for group, share in noise.items():
        for name in group:
            # Three layers with 0.03 of noise together have 0.01 each.
            costs[name] = -10.0 * math.log10(share / len(group))
        if len(group) > 1:
            estimated.update(group)
    # Layers with equal SNR are ordered by name.
    ordered = dict(sorted(costs.items(), key=lambda item: (item[1], item[0])))
    return Ranking(ordered, frozenset(estimated), meter.count)


class _Meter:
    """Measurement of the SNR of models in which only some layers are quantized.

    Attributes:
        count: number of models that were run.
    """

    def __init__(
        self,
        trials: Trials,
        original: bytes,
        feeds: Sequence[Mapping[str, np.ndarray]],
        runs: Runs,
        make_parities: Callable[[], Sequence[Parity]],
    ) -> None:
        self._trials, self._feeds, self._runs = trials, feeds, runs
        self._make_parities = make_parities
        self.count = 0
        # The float model's outputs are computed once and compared with those of every trial.
        run = runs(original)
        self._expected = [run(feed) for feed in feeds]

    def snr_db(self, quantized: Sequence[str]) -> float:
        """Return the SNR in dB of the worst output when only these layers are quantized."""
        self.count += 1
        others = [name for name in self._trials.names if name not in quantized]
        run = self._runs(serialised(self._trials.model_with(others)))
        # Groups differ by far more than the samples do.
        feeds, expected = self._feeds, self._expected
        if len(quantized) > 1:
            feeds, expected = feeds[::GROUP_STRIDE], expected[::GROUP_STRIDE]
        parities = self._make_parities()
        for feed, answers in zip(feeds, expected, strict=True):
            for parity, expected_output, actual in zip(parities, answers, run(feed), strict=True):
                parity.update(expected_output, actual)
        worst = min(closeness_db(parity.result()) for parity in parities)
        return max(-SNR_LIMIT, min(worst, SNR_LIMIT))


def _divide(names: tuple[str, ...], parts: int) -> list[tuple[str, ...]]:
    """Divide names into parts of nearly equal size: five into two are two and three."""
    bounds = [part * len(names) // parts for part in range(parts + 1)]
    return [names[start:end] for start, end in itertools.pairwise(bounds) if start < end]


def _count_singles(noise: Mapping[tuple[str, ...], float]) -> int:
    return sum(len(group) == 1 for group in noise)


def _find_loudest(noise: Mapping[tuple[str, ...], float]) -> tuple[str, ...] | None:
    """Return the group to halve next; None if single layers account for nearly all noise."""
    groups = [group for group in noise if len(group) > 1]
    rest = sum(noise[group] for group in groups)
    if not groups or rest <= UNEXPLAINED * sum(noise.values()):
        return None
    return max(groups, key=noise.__getitem__)


def find_fewest_floats(
    order: Sequence[str], holds: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...] | None:
    """Return the shortest prefix of `order` with which the quality holds; None if none does.

    The length doubles until the quality holds, then is bisected. The empty prefix is known to
    fail; the full one is allowed. Example: if 5 of 9 layers are needed, the search tries
    1, 2, 4, 8, 6 and 5.
    """
    # The quality fails with `low` layers in float, and holds with `high` after the first loop.
    low, high = 0, min(1, len(order))
    while high and not holds(tuple(order[:high])):
        if high == len(order):
            return None
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        if holds(tuple(order[:middle])):
            high = middle
        else:
            low = middle
    return tuple(order[:high]) or None


def requantize_largest(
    floats: Sequence[str],
    weights: Mapping[str, int],
    holds: Callable[[tuple[str, ...]], bool],
) -> tuple[str, ...]:
    """Return the layers that must be float, after trying the largest as integers again.

    Args:
        floats: result of `find_fewest_floats`, of which the last is known to be needed.
        weights: number of weights of every layer.
        holds: returns True if the quality holds with these layers in float.
    """
    # The last one is needed, as the search failed without it. Among the others, the layers with
    # the most weights gain most from int8.
    result = tuple(floats)
    candidates = sorted(floats[:-1], key=lambda name: (-weights.get(name, 0), name))
    for name in candidates[:REQUANTIZED]:
        candidate = tuple(entry for entry in result if entry != name)
        if holds(candidate):
            result = candidate
    return result
