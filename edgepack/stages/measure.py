"""What a graph costs and loses, measured after every pass: so each answers for its own change.

Size, parameters, multiply-accumulates, the quality on the whole evaluation set with the gates that
it misses, and the latency beside the original's. Quality is that of this process; the proof asks
the finished bundle again, through the loader that ships.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgepack import graph
from edgepack.cache import Cache
from edgepack.chain.training import processes
from edgepack.ledger import Ledger, Progress, Stage
from edgepack.runtime.parity.gates import judge
from edgepack.runtime.parity.metrics import Quality, compare
from edgepack.runtime.session.onnx_session import OnnxSession
from edgepack.runtime.session.rounding import rounded
from edgepack.runtime.tensor import Tensor
from edgepack.stages.emulate import stands_in
from edgepack.stages.given import Given, Graph, digest_of, parsed
from edgepack.stages.original import Reference, answered
from edgepack.stages.parts import parts_of
from edgepack.stages.samples import evaluation_of

# Seconds that the quick latency of a graph takes, both sides together, and of one side's turn.
QUICK_SECONDS, TURN_SECONDS = 0.5, 0.02
# Calls of each that are timed at least, however long they take.
FEWEST = 7


def look(
    model: bytes, reference: Reference, outputs: Sequence[Tensor], stage: Stage
) -> graph.Runner:
    """Write size, parameters and parity on the reference samples into a stage's record.

    Returns what runs the model as its target would.
    """
    proto = parsed(model)
    runner = graph.Runner(rounded(model), literal=graph.signed_activations(proto))
    pairs = [
        (original, runner.run(feed))
        for feed, original in zip(reference.feeds, reference.original, strict=True)
    ]
    stage.set(
        bytes=len(model),
        parameters=graph.stats(proto).parameters,
        parity=compare(outputs, parts_of(reference, tuple(outputs)), pairs),
    )
    return runner


def measure(found: Graph, given: Given, cache: Cache, ledger: Ledger, stage: Stage) -> None:
    """Write all of it into a stage's record, with its change against the pass before.

    `measured` holds `macs` of one reference sample, `quality`, the gates that it `missed`,
    `latency` (ms; quick, one thread; None where it was not to be measured here), and `change`
    (None for the original): differences of bytes, parameters, macs, snr_db of the worst output
    and the metric or agreement in points; of the latency the share by which it grew.

    Raises SpecError where the gates or the metric do not fit the model.
    """
    runner = look(found.model, given.reference, found.outputs, stage)
    if not processes.is_main():
        return
    quality = evaluate(found.model, given, cache, stage.progress, runner)
    measured: dict[str, Any] = {
        "macs": graph.macs(parsed(found.model), given.reference.feeds[0]),
        "quality": dict(quality),
        "missed": missed(quality, given),
        "latency": _latency(found, given),
        "change": None,
    }
    stage.set(measured=measured)
    earlier = [r.to_json() for r in ledger.records if r.measured is not None]
    if earlier:
        measured["change"] = change(stage.record.to_json(), earlier[-1])


def evaluate(
    model: bytes,
    given: Given,
    cache: Cache,
    progress: Progress,
    runner: graph.Runner | None = None,
    label: str = "",
) -> Mapping[str, Any]:
    """`samples`, `outputs` and `metric` of a graph on the evaluation set; kept in the cache.

    Args:
        model: the graph, serialised.
        given: the evaluation set, with the original's answers.
        cache: of stages.
        progress: told how far it is, after the label.
        runner: of that graph, where there is one.
        label: what is evaluated.
    """
    count, samples_digest = evaluation_of(given.samples)
    outputs = given.original.outputs
    parts = {
        "model": digest_of(model),
        "samples": samples_digest,
        "original": given.reference.digest,
        "outputs": [tensor.to_json() for tensor in outputs],
        "metric": given.metric,
    }
    key = cache.key("evaluation", parts)
    entry = cache.get("evaluation", key)
    if entry is None:
        literal = graph.signed_activations(parsed(model))
        runner = runner or graph.Runner(rounded(model), literal=literal)
        parts_by_output = parts_of(given.reference, outputs)
        quality = Quality(outputs, parts_by_output, given.metric, given.inputs)
        for batch, answers in answered(given.samples, given.reference):
            quality.update(answers, runner.run(batch.inputs), batch.labels, batch.count)
            progress.tell(f"{label}evaluated {quality.samples:,} of {count:,} samples")
        entry = cache.put("evaluation", key, {}, quality.result())
    return entry.document


def missed(quality: Mapping[str, Any], given: Given) -> list[dict[str, Any]]:
    """The gates of quality that these figures miss."""
    gates = judge(given.bounds, quality["outputs"], quality["metric"])
    return [gate for gate in gates if not gate["passed"]]


def change(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What differs between two records of the ledger that were measured."""
    new, old = now["measured"], before["measured"]
    after, prior = _figures(now), _figures(before)
    changed: dict[str, Any] = {
        name: None if value is None or prior[name] is None else value - prior[name]
        for name, value in after.items()
    }
    both = new["latency"] and old["latency"]
    changed["latency"] = old["latency"]["ratio"] / new["latency"]["ratio"] - 1 if both else None
    return changed


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    snr, points = told(record["measured"]["quality"])
    return {
        "bytes": record["bytes"],
        "parameters": record["parameters"],
        "macs": record["measured"]["macs"],
        "snr_db": snr,
        "metric_points": points,
    }


def told(quality: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """SNR of the worst output in dB (None: exact), and the metric, or agreement, in points."""
    outputs, metric = quality["outputs"], quality["metric"]
    snr = min((o["snr_db"] for o in outputs.values() if o["snr_db"] is not None), default=None)
    if metric:
        return snr, 100.0 * metric["model"]
    agreements = [o["top1_agreement"] for o in outputs.values() if o["top1_agreement"] is not None]
    return snr, 100.0 * min(agreements) if agreements else None


def _latency(found: Graph, given: Given) -> dict[str, Any] | None:
    """Median of one call beside the original's, in ms; None where it is not measured here."""
    if given.request.latency == "none" or stands_in(given.request.target):
        return None
    feed = given.reference.feeds[0]
    if found.model == given.original.model:
        ((median, queries),) = in_turns([found.model], feed)
        return {"p50": median, "original": median, "ratio": 1.0, "queries": queries}
    (median, queries), (other, _) = in_turns([found.model, given.original.model], feed)
    return {"p50": median, "original": other, "ratio": other / median, "queries": queries}


def in_turns(models: Sequence[bytes], feed: Mapping[str, np.ndarray]) -> list[tuple[float, int]]:
    """Of each model the median of one call in ms, and how many were timed; on one thread.

    They take turns, so that a machine whose speed drifts is the same for all.
    """
    calls = [partial(OnnxSession(model, threads=1).run, feed) for model in models]
    times: list[list[int]] = [[] for _ in calls]
    clock, turn = time.perf_counter_ns, int(TURN_SECONDS * 1e9)
    for call in calls:
        call()
    until = clock() + int(QUICK_SECONDS * 1e9)
    while min(map(len, times)) < FEWEST or clock() < until:
        for call, timed in zip(calls, times, strict=True):
            begun = now = clock()
            while now - begun < turn:
                call()
                before, now = now, clock()
                # The first call of a turn finds the caches full of another model: a short one
                # would tell of that.
                if before > begun or now - begun >= turn:
                    timed.append(now - before)
    return [(statistics.median(timed) / 1e6, len(timed)) for timed in times]
