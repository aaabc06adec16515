"""Try quantizations of one model with different layers in float, to repair its quality.

Layers are ranked by their individual cost: the SNR of the network's outputs on calibration samples
when only that layer is quantized. The search returns the worst layers to float until the quality
gate passes; the caller evaluates the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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


def rank_layers(
    trials: Trials,
    original: bytes,
    feeds: Sequence[Mapping[str, np.ndarray]],
    runs: Runs,
    make_parities: Callable[[], Sequence[Parity]],
    progress: Progress,
) -> dict[str, float]:
    """Rank layers by the SNR in dB of the worst output when only that layer is quantized.

    Args:
        trials: of the model.
        original: the float model.
        feeds: inputs for both.
        runs: runs a model.
        make_parities: returns a fresh comparison for each output.
        progress: advances with every layer.
    """
    # The float model's outputs are computed once and compared with those of every trial.
    run = runs(original)
    expected = [run(feed) for feed in feeds]
    costs: dict[str, float] = {}
    for name in trials.names:
        others = [actual for actual in trials.names if actual != name]
        run = runs(serialised(trials.model_with(others)))
        parities = make_parities()
        for feed, answers in zip(feeds, expected, strict=True):
            for parity, expected_output, actual in zip(parities, answers, run(feed), strict=True):
                parity.update(expected_output, actual)
        costs[name] = min(min(closeness_db(p.result()), SNR_LIMIT) for p in parities)
        progress.advance()
        progress.tell(f"ranked {len(costs)} of {len(trials.names)} layers")
    # Layers with equal SNR are ordered by name, independent of their positions in the graph.
    return dict(sorted(costs.items(), key=lambda item: (item[1], item[0])))


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
