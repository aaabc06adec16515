"""The same quantization again and again, with other layers left float: what a repair tries.

Layers are ranked by what each costs alone: the SNR of the network's outputs on calibration samples
when nothing but that layer is quantized. The search returns the worst to float until the quality
holds; how it is judged is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgepack.chain.quantize.options import QuantizeOptions
from edgepack.chain.quantize.refusals import check_not_quantized, no_samples
from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.metrics.closeness import closeness_db
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.parity.parts import SNR_LIMIT

if TYPE_CHECKING:
    import onnx

# Runs a serialised model: outputs in order, for arrays by input name.
Runs = Callable[[bytes], Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]]
# Samples that layers are ranked on.
RANKED = 32
# Layers of a repair that are tried as integers again, since others may have been enough.
SPARED = 8


class Trials(Protocol):
    """Quantizations of one model that differ in the layers that stay float."""

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes that become integer."""

    def model_with(self, floats: Collection[str]) -> onnx.ModelProto:
        """The model where these stay float; not all of `names`."""

    def result(self, floats: Collection[str] = ()) -> PassResult[Any]:
        """The same with its figures."""


def make_trials(
    model: onnx.ModelProto, samples: Samples | None, options: QuantizeOptions, progress: Progress
) -> Trials:
    """The quantizations that `quantize` with these options has a choice of; it raises likewise."""
    check_not_quantized(model)
    if samples is None and options.needs:
        raise no_samples(options.mode)
    if options.mode == "static" and samples is not None:
        from edgepack.chain.quantize.run import Run

        return Run(model, samples, options, progress)
    from edgepack.chain.quantize.unranged.run import UnrangedRun

    return UnrangedRun(model, samples, options, progress)


def chosen(samples: Samples, count: int, batch_size: int) -> list[Mapping[str, np.ndarray]]:
    """About `RANKED` of `count` samples, spread evenly, as feeds of at most `batch_size`."""
    batches = -(-count // batch_size)
    selected = min(batches, -(-RANKED // batch_size))
    positions = {position * batches // selected for position in range(selected)}
    return [
        batch.inputs
        for position, batch in enumerate(samples.batches(batch_size))
        if position in positions
    ]


def rank(
    trials: Trials,
    original: bytes,
    feeds: Sequence[Mapping[str, np.ndarray]],
    runs: Runs,
    make_parities: Callable[[], Sequence[Parity]],
    progress: Progress,
) -> dict[str, float]:
    """What each layer costs alone: the SNR of the worst output in dB, the lowest first.

    Args:
        trials: of the model.
        original: the float model.
        feeds: what both are run on.
        runs: runs a model.
        make_parities: gives what compares the answers of each output.
        progress: told every layer.
    """
    run = runs(original)
    expected = [run(feed) for feed in feeds]
    costs: dict[str, float] = {}
    for name in trials.names:
        others = [actual for actual in trials.names if actual != name]
        run = runs(trials.model_with(others).SerializeToString())
        parities = make_parities()
        for feed, answers in zip(feeds, expected, strict=True):
            for parity, expected_output, actual in zip(parities, answers, run(feed), strict=True):
                parity.update(expected_output, actual)
        costs[name] = min(min(closeness_db(p.result()), SNR_LIMIT) for p in parities)
        progress.advance()
        progress.tell(f"ranked {len(costs)} of {len(trials.names)} layers")
    # Where two cost the same, their names decide, not their places in the graph.
    return dict(sorted(costs.items(), key=lambda item: (item[1], item[0])))


def search(
    order: Sequence[str], holds: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...] | None:
    """The smallest beginning of `order` with which the quality holds; None where none does.

    Twice as many each time, then halved between; all of `order` may be float, and none is known
    not to hold.
    """
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


def spared(
    floats: Sequence[str],
    weights: Mapping[str, int],
    holds: Callable[[tuple[str, ...]], bool],
) -> tuple[str, ...]:
    """What of those layers must be float: each of the largest is tried as integers again.

    Args:
        floats: as `search` found them, the last one needed.
        weights: number of weights of every layer.
        holds: whether the quality does.
    """
    result = tuple(floats)
    candidates = sorted(floats[:-1], key=lambda name: (-weights.get(name, 0), name))
    for name in candidates[:SPARED]:
        candidate = tuple(entry for entry in result if entry != name)
        if holds(candidate):
            result = candidate
    return result
