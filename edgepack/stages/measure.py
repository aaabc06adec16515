"""Measure the cost and quality of the graph after every pass, and the change by the pass.

Size, parameters, multiply-accumulates, the quality on the whole evaluation set with the gates
that it misses, and the latency beside the original's. Quality is measured in this process; the
proof measures the finished bundle again, through its loader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, cast

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
from edgepack.runtime.bundle.engines import DEFAULTS, ONNXRUNTIME, Settings
from edgepack.runtime.commands.load import spread_of
from edgepack.runtime.documents import Gate, Measurement
from edgepack.runtime.parity.gates import judge
from edgepack.runtime.parity.metrics import Quality, compare
from edgepack.runtime.session.cpu import open_session
from edgepack.runtime.session.rounding import round_halves
from edgepack.runtime.tensor import Tensor
from edgepack.timing import Subject, time_in_turns

# Turns of each model for the latency after a pass, and the seconds of one turn.
ROUNDS, TURN_SECONDS = 3, 0.1


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


def measure(
    candidate: Graph,
    context: BuildContext,
    stage: Stage,
    quality: Measurement | None = None,
    latency: QuickLatency | None = None,
) -> None:
    """Write all measurements into a stage's record, with the change against the previous pass.

    `measured` holds `macs` of one reference sample, `quality`, the gates that it `missed`,
    `latency` (ms; quick, as `bench` measures; None if it is not measured here), and `change` (None
    for the original): differences of bytes, parameters, macs, snr_db of the worst output and the
    metric or agreement in points, and the relative growth of the latency.

    Args:
        candidate: the graph after the stage.
        context: the original, and the evaluation set.
        stage: receives the measurements.
        quality: of the graph, if it is known.
        latency: of the graph, if it is known.

    Raises SpecError if the gates or the metric do not fit the model.
    """
    runner = measure_reference(candidate.model, context.reference, candidate.outputs, stage)
    if not processes.is_main():
        return
    # Only the main process of a training evaluates; the others would repeat its work.
    if quality is None:
        quality = evaluate(candidate.model, context, stage.progress, runner)
    measured: Measured = {
        "macs": graph.macs(parse_model(candidate.model), context.reference.feeds[0]),
        "quality": quality,
        "missed": list_missed_gates(quality, context),
        "latency": latency or _measure_latency(candidate, context),
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
    runner: _Runs | None = None,
    label: str = "",
    engine: str = ONNXRUNTIME,
    settings: Settings = DEFAULTS,
) -> Measurement:
    """Return `samples`, `outputs` and the metrics of a graph on the evaluation set, with caching.

    Args:
        model: the graph, serialised.
        context: the evaluation set, with the original's answers.
        progress: receives the number of evaluated samples, after the label.
        runner: of that graph; None to create one.
        label: start of the progress messages, such as "2 layers float: ".
        engine: that computes the answers: ONNXRUNTIME or OPENVINO.
        settings: of the engine, of which only the precision changes answers.
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
    # The answers of onnxruntime do not depend on its settings.
    if engine != ONNXRUNTIME:
        parts["engine"] = [engine, settings.precision]
    key = cache.key("evaluation", parts)
    entry = cache.get("evaluation", key)
    if entry is None:
        if engine != ONNXRUNTIME:
            runner = _EngineRunner(model, context.original, engine, settings)
        if runner is None:
            literal = graph.signed_activations(parse_model(model))
            runner = graph.Runner(round_halves(model), literal=literal)
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


class _Runs(Protocol):
    """Runner of a graph."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Return the outputs in order."""


class _EngineRunner:
    """Runner of a graph in another engine than onnxruntime, by the loader's code."""

    def __init__(self, model: bytes, original: Graph, engine: str, settings: Settings) -> None:
        inputs, outputs = original.inputs, original.outputs
        self._session = open_session(engine, model, inputs, outputs, settings)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Return the outputs in order."""
        return list(self._session.run(inputs).values())


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
    """Return the median of one call beside the original's, in ms; None if not measured here.

    Measured as `bench` does: in processes of their own, on every core, by the loader's code.
    """
    if context.request.latency == "none" or stands_in(context.request.target):
        return None
    feed, original = context.reference.feeds[0], context.original
    ours = Subject(candidate.model, candidate.inputs, candidate.outputs)
    # A pass that changed nothing has the original's latency, whatever the clock says.
    if candidate.model == original.model:
        (worker,) = time_in_turns([ours], feed, 1, TURN_SECONDS)
        return {
            "p50": worker.median,
            "original": worker.median,
            "ratio": 1.0,
            "queries": worker.queries,
        }
    theirs = Subject(original.model, original.inputs, original.outputs)
    worker, other = time_in_turns([ours, theirs], feed, ROUNDS, TURN_SECONDS)
    ratios = [b / a for a, b in zip(worker.rounds, other.rounds, strict=True)]
    return {
        "p50": worker.median,
        "original": other.median,
        "ratio": other.median / worker.median,
        "queries": worker.queries,
        "spread": spread_of(ratios),
    }
