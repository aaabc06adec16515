"""Measure the cost and quality of the graph after every pass, and the change by the pass.

Size, parameters, multiply-accumulates, the quality on the whole evaluation set with the gates
that it misses, and the latency beside the original's. Quality is measured in this process; the
proof measures the finished bundle again, through its loader.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast

import numpy as np

from edgepack import graph
from edgepack.context import BuildContext, Graph, Reference
from edgepack.context.answers import iterate_answers
from edgepack.context.gates import judge_metrics, judge_primary
from edgepack.context.graph import describe_tensors, digest_model, parse_model
from edgepack.context.parts import divide_outputs
from edgepack.context.scoring import score_model
from edgepack.host import stands_in
from edgepack.ledger import (
    Change,
    Measured,
    Progress,
    QuickLatency,
    RecordDocument,
    Stage,
    read_measured,
)
from edgepack.metrics.collect import Collector
from edgepack.metrics.results import add_metrics, list_metrics
from edgepack.passes.training import processes
from edgepack.runtime.commands.load import spread_of
from edgepack.runtime.documents import Gate, Measurement
from edgepack.runtime.parity.gates import judge
from edgepack.runtime.parity.metrics import Quality, compare
from edgepack.runtime.session.onnx_session import OnnxSession
from edgepack.runtime.session.rounding import round_halves
from edgepack.runtime.tensor import Tensor

# Seconds of the quick latency of a graph, for all models together, and of one model's turn.
QUICK_SECONDS, TURN_SECONDS = 0.5, 0.02
# Least number of timed calls of each model, however long they take.
FEWEST = 7


def measure_reference(
    model: bytes, reference: Reference, outputs: Sequence[Tensor], stage: Stage
) -> graph.Runner:
    """Write size, parameters and parity on the reference samples into a stage's record.

    Returns a runner that computes as the target does.
    """
    proto = parse_model(model)
    runner = graph.Runner(round_halves(model), literal=graph.signed_activations(proto))
    answers = map(runner.run, reference.feeds)
    pairs = list(zip(reference.original, answers, strict=True))
    stage.set(
        bytes=len(model),
        parameters=graph.stats(proto).parameters,
        parity=compare(outputs, divide_outputs(reference, tuple(outputs)), pairs),
    )
    return runner


def measure(candidate: Graph, context: BuildContext, stage: Stage) -> None:
    """Write all measurements into a stage's record, with the change against the previous pass.

    `measured` holds `macs` of one reference sample, `quality`, the gates that it `missed`,
    `latency` (ms; quick, one thread; None if it is not measured here), and `change` (None for
    the original): differences of bytes, parameters, macs, snr_db of the worst output and the
    metric or agreement in points, and the relative growth of the latency.

    Raises SpecError if the gates or the metric do not fit the model.
    """
    runner = measure_reference(candidate.model, context.reference, candidate.outputs, stage)
    if not processes.is_main():
        return
    # Only the main process of a training evaluates; the others would repeat its work.
    quality = evaluate(candidate.model, context, stage.progress, runner)
    measured: Measured = {
        "macs": graph.macs(parse_model(candidate.model), context.reference.feeds[0]),
        "quality": quality,
        "missed": list_missed_gates(quality, context),
        "latency": _measure_latency(candidate, context),
        "change": None,
    }
    stage.set(measured=measured)
    # The ledger does not hold the stage's own record yet: the last measured one is the pass before.
    for record in reversed(context.ledger.records):
        if record.measured is not None:
            measured["change"] = compare_records(stage.record.to_json(), record.to_json())
            break


def evaluate(
    model: bytes,
    context: BuildContext,
    progress: Progress,
    runner: graph.Runner | None = None,
    label: str = "",
) -> Measurement:
    """Return `samples`, `outputs` and the metrics of a graph on the evaluation set, with caching.

    Args:
        model: the graph, serialised.
        context: the evaluation set, with the original's answers.
        progress: receives the number of evaluated samples, after the label.
        runner: of that graph; None to create one.
        label: start of the progress messages, such as "2 layers float: ".
    """
    count, cache = context.samples.evaluation_count, context.cache
    outputs = context.original.outputs
    parts = {
        "model": digest_model(model),
        "samples": context.samples.evaluation_digest,
        "original": context.reference.digest,
        "outputs": describe_tensors(outputs),
        "metric": context.metric_key,
    }
    key = cache.key("evaluation", parts)
    entry = cache.get("evaluation", key)
    if entry is None:
        literal = graph.signed_activations(parse_model(model))
        runner = runner or graph.Runner(round_halves(model), literal=literal)
        parts_by_output = divide_outputs(context.reference, outputs)
        scores, counted = context.reference.scores, context.counted
        quality = Quality(outputs, parts_by_output, counted, context.inputs)
        with Collector() as collected:
            for batch, answers in iterate_answers(context.samples, context.reference):
                measured = runner.run(batch.inputs)
                quality.update(answers, measured, batch.labels, batch.count)
                if scores:
                    collected.add(measured, batch.count)
                progress.tell(f"{label}evaluated {quality.samples:,} of {count:,} samples")
            result = quality.result()
            if scores:
                results = score_model(context.reference, collected, result["outputs"])
                add_metrics(result, results, counted=bool(counted))
        entry = cache.put("evaluation", key, {}, result)
    return cast(Measurement, entry.document)


def list_missed_gates(quality: Measurement, context: BuildContext) -> list[Gate]:
    """Return the gates of quality that these figures miss."""
    counted = quality["metric"] if context.counted else None
    gates = judge(context.bounds, quality["outputs"], counted)
    if not counted:
        gates += judge_primary(context.bounds, quality["metric"])
    gates += judge_metrics(context.request.metric_gates, list_metrics(quality))
    return [gate for gate in gates if not gate["passed"]]


def compare_records(now: RecordDocument, before: RecordDocument) -> Change:
    """Return the differences between two records of the ledger with measurements."""
    new, old = read_measured(now), read_measured(before)
    snr, points = summarize_quality(new["quality"])
    old_snr, old_points = summarize_quality(old["quality"])
    # The ratio is the original's latency over the model's, so a growth from 2.0 to 1.6 is 25 %.
    latency = None
    if new["latency"] and old["latency"]:
        latency = old["latency"]["ratio"] / new["latency"]["ratio"] - 1
    return {
        "bytes": (now["bytes"] or 0) - (before["bytes"] or 0),
        "parameters": (now["parameters"] or 0) - (before["parameters"] or 0),
        "macs": _subtract(new["macs"], old["macs"]),
        "snr_db": _subtract(snr, old_snr),
        "metric_points": _subtract(points, old_points),
        "latency": latency,
    }


Figure = TypeVar("Figure", int, float)


def _subtract(after: Figure | None, before: Figure | None) -> Figure | None:
    """Return the growth of a figure; None if either of the two is unknown."""
    if after is None or before is None:
        return None
    return after - before


def summarize_quality(quality: Measurement) -> tuple[float | None, float | None]:
    """Return the worst output's SNR in dB (None: exact), and the metric or agreement in points."""
    snrs: list[float] = []
    agreements: list[float] = []
    for output in quality["outputs"].values():
        # An exact output has no SNR, and one that does not decide no agreement.
        if output["snr_db"] is not None:
            snrs.append(output["snr_db"])
        if output["top1_agreement"] is not None:
            agreements.append(output["top1_agreement"])
    snr = min(snrs, default=None)
    if quality["metric"]:
        return snr, 100.0 * quality["metric"]["model"]
    if not agreements:
        return snr, None
    return snr, 100.0 * min(agreements)


def _measure_latency(candidate: Graph, context: BuildContext) -> QuickLatency | None:
    """Return the median of one call beside the original's, in ms; None if not measured here."""
    if context.request.latency == "none" or stands_in(context.request.target):
        return None
    feed = context.reference.feeds[0]
    # A pass that changed nothing has the original's latency, whatever the clock says.
    if candidate.model == context.original.model:
        (times,) = time_in_turns([candidate.model], feed)
        median = find_median(times)
        return {"p50": median, "original": median, "ratio": 1.0, "queries": len(times)}
    times, others = time_in_turns([candidate.model, context.original.model], feed)
    median, other = find_median(times), find_median(others)
    ratios = []
    for ours, theirs in zip(split_in_thirds(times), split_in_thirds(others), strict=True):
        ratios.append(find_median(theirs) / find_median(ours))
    return {
        "p50": median,
        "original": other,
        "ratio": other / median,
        "queries": len(times),
        "spread": spread_of(ratios),
    }


def find_median(times: Sequence[int]) -> float:
    """Return the median of times in ns, in ms."""
    return statistics.median(times) / 1e6


def split_in_thirds(times: Sequence[int]) -> list[Sequence[int]]:
    """Split the times into three rounds, in the order of their measurement."""
    # Of 10 times the rounds have 3, 3 and 4; two or fewer are one round.
    if len(times) < 3:
        return [times]
    first, second = len(times) // 3, 2 * len(times) // 3
    return [times[:first], times[first:second], times[second:]]


def time_in_turns(models: Sequence[bytes], feed: Mapping[str, np.ndarray]) -> list[list[int]]:
    """Return, for each model, the times of its calls in ns.

    Each model runs on one thread. They take turns, so that a drift of the machine's speed
    affects all of them alike.
    """
    calls: list[Callable[[], object]] = []
    times: list[list[int]] = []
    for model in models:
        calls.append(partial(OnnxSession(model, threads=1).run, feed))
        times.append([])
    # One call of each model first, untimed: the first call allocates memory and plans kernels.
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
                # The first call of a turn finds the processor's caches full of another model, so
                # it is timed only if it takes the whole turn.
                if before > begun or now - begun >= turn:
                    timed.append(now - before)
    return times
