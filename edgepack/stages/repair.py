"""Stage `repair`: return layers to float until the gates pass that a pass on the graph missed.

The layers with the largest loss are returned first. The loss is measured on calibration samples;
the evaluation set serves only to check the gates. If no set of layers passes them, the build
continues with the best one, and the proof refuses it with an account of the trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack import graph
from edgepack.context import BuildContext, Graph
from edgepack.context.graph import describe_tensors, digest_model, parse_model
from edgepack.context.parts import divide_outputs
from edgepack.data.samples import Samples
from edgepack.ledger import Ledger, PassResult, Record, Stage, read_measured
from edgepack.onnx_tools.writer import serialised
from edgepack.passes.protocol import Trials
from edgepack.passes.repair import find_fewest_floats, rank_layers, requantize_largest, select_feeds
from edgepack.report import describe_gate
from edgepack.report.figures import (
    format_bytes,
    format_decibel,
    format_percent,
    format_plural,
    format_snr,
)
from edgepack.runtime.documents import Gate, Measurement
from edgepack.runtime.parity.metrics import Parity, list_axis
from edgepack.runtime.session.rounding import round_halves
from edgepack.stages.cached import run_cached
from edgepack.stages.measure import evaluate, list_missed_gates, measure, summarize_quality

if TYPE_CHECKING:
    import onnx

# Samples per feed for ranking the layers.
BATCH = 4
# Layers that a note names.
SPELT = 6
# fp16 has this share of the float model's bytes; a larger integer model saves nothing.
HALF = 0.5


def repair(
    before: Graph, result: Graph, parts: Mapping[str, object], trials: Callable[[], Trials],
    context: BuildContext,
) -> Graph:  # fmt: skip
    """Return the graph of a pass; with layers returned to float if it missed a gate.

    The ledger receives the stage `repair`, unless no gate was missed.

    Args:
        before: the graph before the pass.
        result: the graph after the pass; the ledger's last record is the pass's.
        parts: the key parts of the pass.
        trials: creates other results of the pass; called only if they are needed.
        context: the gates and the evaluation set.
    """
    ledger = context.ledger
    record = ledger.records[-1]
    if record.measured is None or not record.measured["missed"]:
        return result
    with ledger.stage("repair") as stage:
        calibration, reason = context.samples.calibration, _find_skip_reason(ledger)
        if calibration is None:
            reason = "There are no calibration samples to rank the layers on."
        if calibration is None or reason:
            stage.set(status="skipped")
            stage.note(reason)
            return result
        # All that decides which layers return; a changed gate alone repeats the search.
        parts = {
            **parts,
            "made": digest_model(result.model),
            "ranked": context.samples.lint.digests.get("calibration"),
            "evaluation": context.samples.evaluation_digest,
            "original": context.reference.digest,
            "outputs": describe_tensors(context.original.outputs),
            "metric": context.metric_key,
            "gates": [dict(context.bounds), dict(context.request.metric_gates)],
        }
        model, details = run_cached(
            "repair", parts, stage, context.cache,
            lambda: _Search(before, record, trials(), context, stage).result(calibration),
        )  # fmt: skip
        names = tuple(layer["name"] for layer in details["returned"])
        repaired = replace(
            result, model=model, integer_only=bool(details["integer_only"]), returned=names
        )
        measure(repaired, context, stage)
        stage.note(*_format_notes(details, stage.record))
        if not details["holds"]:
            stage.set(status="failed")
        elif result.integer_only and not repaired.integer_only:
            stage.note("Other CPUs must meet the SNR of fidelity now: floats differ in bits.")
    if details["holds"]:
        ledger.warn(*_describe_poor_gain(details, before, stage.record))
    return repaired


def _find_skip_reason(ledger: Ledger) -> str:
    """Return the reason for not searching, if an earlier stage missed the gates; "" for none."""
    lost, last = ledger.find_losing_pass(), ledger.records[-1]
    if lost is None or lost is last:
        return ""
    return (
        f"The gates were missed before {last.stage}, since {lost.stage}: "
        "returning layers to float cannot restore that."
    )


class _Search:
    """Search for the layers to return to float."""

    def __init__(
        self, before: Graph, record: Record, trials: Trials, context: BuildContext, stage: Stage
    ) -> None:
        self.before, self.trials, self.context, self.stage = before, trials, context, stage
        quality = read_measured(record.to_json())["quality"]
        # Quality by the layers in float; the empty tuple is the result of the pass.
        self.tried: dict[tuple[str, ...], Measurement] = {(): quality}

    def result(self, calibration: Samples) -> PassResult[onnx.ModelProto]:
        """Return the repaired model, or the closest to the gates, with details for the notes."""
        started = time.perf_counter()
        names = self.trials.names
        count = self.context.samples.lint.counts["calibration"]
        ranked = rank_layers(
            self.trials,
            self.before.model,
            select_feeds(calibration, count, BATCH),
            _make_runner,
            self._make_parities,
            self.stage.progress,
        )
        # One layer stays quantized: without any, the pass would have no effect.
        # Few layers usually cost most of the quality: of 21, the first two may be enough.
        floats = find_fewest_floats(list(ranked.costs)[:-1], self._passes)
        holds = floats is not None
        if floats is None:
            floats = max(self.tried, key=self._rate)
        else:
            floats = requantize_largest(floats, self._measure_weights(), self._passes)
        result = self.trials.result(floats)
        operators = {node.name: node.op_type for node in parse_model(self.before.model).graph.node}
        # Both lists begin with the layer that costs the most when it is quantized alone.
        returned: list[dict[str, object]] = []
        ranking: list[dict[str, object]] = []
        for name, cost in ranked.costs.items():
            layer: dict[str, object] = {"name": name, "snr_db": round(cost, 2)}
            if name in ranked.estimated:
                layer["estimated"] = True
            ranking.append(layer)
            if name in floats:
                returned.append({**layer, "operator": operators.get(name, "")})
        details = {
            "holds": holds,
            "returned": returned,
            "layers": len(names),
            "ranking": ranking,
            "ranking_runs": ranked.runs,
            "tried": [self._summarize(floats) for floats in self.tried],
            "search_seconds": round(time.perf_counter() - started, 1),
            "integer_only": bool(result.details.get("integer_only", False)),
        }
        return PassResult(result.model, True, (), details)

    def _make_parities(self) -> list[Parity]:
        outputs = self.context.original.outputs
        parts = divide_outputs(self.context.reference, outputs)
        parities = []
        for tensor in outputs:
            axis = list_axis(tensor, self.context.inputs)
            parities.append(Parity(tensor, parts[tensor.name], axis))
        return parities

    def _passes(self, floats: tuple[str, ...]) -> bool:
        if floats not in self.tried:
            model = serialised(self.trials.model_with(floats))
            label = f"{format_plural(len(floats), 'layer')} float: "
            progress = self.stage.progress
            self.tried[floats] = evaluate(model, self.context, progress, label=label)
        return not self._list_missed(floats)

    def _list_missed(self, floats: tuple[str, ...]) -> list[Gate]:
        return list_missed_gates(self.tried[floats], self.context)

    def _rate(self, floats: tuple[str, ...]) -> tuple[float, ...]:
        """Order results by the number of missed gates and by the widest miss, then the metric, SNR.

        One missed gate of 30 dB with 24 dB, a fifth below, at 71.2 points is (-1, -0.2, 71.2, 24).
        """
        missed = self._list_missed(floats)
        snr, points = summarize_quality(self.tried[floats])
        metric = self.tried[floats]["metric"]
        if points is None:
            points = -math.inf
        elif metric and not metric.get("higher_is_better", True):
            points = -points
        if snr is None:  # exact
            snr = math.inf
        return -len(missed), -max(map(_find_shortfall, missed), default=0.0), points, snr

    def _summarize(self, floats: tuple[str, ...]) -> dict[str, object]:
        snr, points = summarize_quality(self.tried[floats])
        gates = [describe_gate(gate) for gate in self._list_missed(floats)]
        return {"layers": len(floats), "snr_db": snr, "metric_points": points, "missed": gates}

    def _measure_weights(self) -> dict[str, int]:
        """Return the size of the weights of every layer of the float graph, in bytes."""
        proto = parse_model(self.before.model).graph
        # Data outside of `raw_data` counts as one byte: such tensors are small.
        sizes = {tensor.name: len(tensor.raw_data) or 1 for tensor in proto.initializer}
        weights = {}
        for node in proto.node:
            weights[node.name] = sum(sizes.get(name, 0) for name in node.input)
        return weights


def _find_shortfall(gate: Gate) -> float:
    """Return the distance of a missed gate from its bound, as a share of the bound."""
    # None is an answer without a finite value, further from any bound than a number.
    if gate["measured"] is None:
        return math.inf
    return abs(gate["measured"] - gate["bound"]) / (abs(gate["bound"]) or 1.0)


def _make_runner(model: bytes) -> Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]:
    """Return a function that runs a model as `measure` does."""
    return graph.Runner(
        round_halves(model), literal=graph.signed_activations(parse_model(model))
    ).run


def _format_notes(details: Mapping[str, Any], record: Record) -> list[str]:
    """Describe the returned layers and their cost, in sentences for the ledger."""
    returned, layers = details["returned"], details["layers"]
    measured = [layer for layer in returned if not layer.get("estimated")]
    costs = "; ".join(f'layer "{layer["name"]}": {format_snr(layer)}' for layer in measured[:SPELT])
    if costs and len(returned) > len(measured[:SPELT]):
        costs += f"; {len(returned) - len(measured[:SPELT])} more"
    share = f"{len(returned)} of {format_plural(layers, 'layer')}"
    price = f"{share} back to float: {_format_price(record)}."
    snrs = []
    if costs:
        snrs.append(f"SNR with only that layer quantized: {costs}.")
    if details["holds"]:
        return [price, *snrs]
    if layers == 1:
        return ["The only layer stays quantized: in float, the pass would have no effect."]
    # The result of the pass itself, with no layer in float, is among the trials.
    tried = details["tried"]
    best = next(trial for trial in tried if trial["layers"] == len(returned))
    most = max(trial["layers"] for trial in tried)
    return [
        f"No set of layers in float passes the gates: {format_plural(len(tried) - 1, 'set')} "
        f"tried, of up to {most} of {format_plural(layers, 'layer')}.",
        f"The best of them: {price} It misses: {', '.join(best['missed'])}.",
        *snrs,
    ]


def _format_price(record: Record) -> str:
    """Return the change of the measurements: "+2.1 points, +3.2 dB, +4 % time, +1.10 MB"."""
    change = read_measured(record.to_json())["change"]
    if change is None:
        return "nothing changed"
    parts = [
        *_format_signed(change["metric_points"], lambda v: f"{v:.2f} points"),
        *_format_signed(change["snr_db"], format_decibel),
        *_format_signed(change["latency"], lambda v: f"{format_percent(v, 0)} time"),
        *_format_signed(change["bytes"], format_bytes),
    ]
    return ", ".join(parts) or "nothing changed"


def _format_signed(value: float | None, text: Callable[[float], str]) -> list[str]:
    """Return a value with its sign; nothing for 0 and None."""
    if not value:
        return []
    if value < 0:
        return ["−" + text(-value)]
    return ["+" + text(value)]


def _describe_poor_gain(details: Mapping[str, Any], before: Graph, record: Record) -> list[str]:
    """Return a warning if so many layers are in float that the pass is hardly worth its cost."""
    # 0.6 of the float model's bytes, where fp16 has 0.5 and loses next to nothing.
    share = (record.bytes or 0) / len(before.model)
    latency = read_measured(record.to_json())["latency"]
    if share < HALF or (latency and latency["ratio"] > 1):
        return []
    integers = details["layers"] - len(details["returned"])
    slow, verb = "", "are"
    if latency:
        slow = " and is no faster"
    if integers == 1:
        verb = "is"
    return [
        f"after the repair {integers} of {format_plural(details['layers'], 'layer')} {verb} "
        f"integer; the model has {format_percent(share)} of the bytes of its fp32 graph{slow}: "
        "consider fp16 (--chain half) or no pass at all (--chain none)"
    ]
