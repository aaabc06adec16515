"""Stage `repair`: a gate that a pass missed is won back with as little of the pass as need be.

The layers that cost most go back to float until the gates hold. Which cost most is measured on
calibration samples; the evaluation set only says whether the gates hold. Where no set of layers
holds them, the best that was found goes on, to be refused by the proof with all that was tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgepack import graph
from edgepack.cache import Cache
from edgepack.chain.quantize.trials import Trials, chosen, rank, search, spared
from edgepack.data.samples import Samples
from edgepack.ledger import Ledger, PassResult, Record, Stage
from edgepack.report import describe_gate
from edgepack.report.figures import bytes_text, decibel, percent, plural, snr_text
from edgepack.runtime.parity.metrics import Parity, list_axis
from edgepack.runtime.session.rounding import rounded
from edgepack.stages.given import Given, Graph, digest_of, parsed
from edgepack.stages.kept import through_cache
from edgepack.stages.measure import evaluate, measure, missed, told
from edgepack.stages.parts import parts_of
from edgepack.stages.samples import evaluation_of

# Samples of a feed that layers are ranked on.
BATCH = 4
# Layers that a note spells out.
SPELT = 6
# Share of the float model's bytes from which fp16 is as small.
HALF = 0.5


def repair(
    before: Graph, made: Graph, parts: Mapping[str, Any], trials: Callable[[], Trials],
    given: Given, cache: Cache, ledger: Ledger,
) -> Graph:  # fmt: skip
    """The graph that a pass made, or one with less of the pass where it missed a gate.

    Args:
        before: the graph that the pass was given.
        made: what it made of that; the ledger's last record is the pass's.
        parts: what decided that.
        trials: makes the pass's other results; called where they are needed.
        given: the gates and what they are judged on.
        cache: of stages.
        ledger: has the record `repair` afterwards, unless nothing was missed.
    """
    whole = ledger.records[-1]
    if whole.measured is None or not whole.measured["missed"]:
        return made
    with ledger.stage("repair") as stage:
        calibration, reason = given.samples.calibration, _hopeless(ledger)
        if calibration is None:
            reason = "There are no calibration samples that tell which layers cost most."
        if calibration is None or reason:
            stage.set(status="skipped")
            stage.note(reason)
            return made
        parts = {
            **parts,
            "made": digest_of(made.model),
            "ranked": given.samples.lint.digests.get("calibration"),
            "evaluation": evaluation_of(given.samples)[1],
            "original": given.reference.digest,
            "outputs": [tensor.to_json() for tensor in given.original.outputs],
            "metric": given.metric,
            "gates": dict(given.bounds),
        }
        model, found = through_cache(
            "repair", parts, stage, cache,
            lambda: _Search(before, whole, trials(), given, cache, stage).result(calibration),
        )  # fmt: skip
        names = tuple(layer["name"] for layer in found["returned"])
        repaired = replace(
            made, model=model, integer_only=bool(found["integer_only"]), returned=names
        )
        measure(repaired, given, cache, ledger, stage)
        stage.note(*_notes(found, stage.record))
        if not found["holds"]:
            stage.set(status="failed")
        elif made.integer_only and not repaired.integer_only:
            stage.note("Other CPUs are held to the SNR of fidelity now: floats differ in bits.")
    if found["holds"]:
        ledger.warn(*_not_worth_it(found, before, stage.record))
    return repaired


def _hopeless(ledger: Ledger) -> str:
    """Why no layer wins the gates back; "" where one may."""
    lost, last = ledger.lost_in(), ledger.records[-1]
    if lost is None or lost is last:
        return ""
    return (
        f"The gates were missed before {last.stage}, since {lost.stage}: "
        "no layer that goes back to float wins that back."
    )


class _Search:
    """One search for the layers that have to be float."""

    def __init__(
        self, before: Graph, whole: Record, trials: Trials, given: Given, cache: Cache,
        stage: Stage,
    ) -> None:  # fmt: skip
        self.before, self.trials, self.given = before, trials, given
        self.cache, self.stage = cache, stage
        quality = (whole.measured or {})["quality"]
        # With all that was tried, from no layer back to float on.
        self.tried: dict[tuple[str, ...], Mapping[str, Any]] = {(): quality}

    def result(self, calibration: Samples) -> PassResult[Any]:
        """The repaired model, or the best that is not; figures for `_notes`."""
        started = time.perf_counter()
        names = self.trials.names
        count = self.given.samples.lint.counts["calibration"]
        self.stage.progress.expect(len(names))
        costs = rank(
            self.trials,
            self.before.model,
            chosen(calibration, count, BATCH),
            _runs,
            self._parities,
            self.stage.progress,
        )
        # One stays: without any, nothing would be left of the pass.
        floats = search(list(costs)[:-1], self._holds)
        holds = floats is not None
        if floats is None:
            floats = max(self.tried, key=self._closeness)
        else:
            floats = spared(floats, self._weights(), self._holds)
        made = self.trials.result(floats)
        operators = {node.name: node.op_type for node in parsed(self.before.model).graph.node}
        details = {
            "holds": holds,
            "returned": [
                {"name": name, "operator": operators.get(name, ""), "snr_db": round(costs[name], 2)}
                for name in costs
                if name in floats
            ],
            "layers": len(names),
            "ranking": [{"name": name, "snr_db": round(cost, 2)} for name, cost in costs.items()],
            "tried": [self._told(floats) for floats in self.tried],
            "search_seconds": round(time.perf_counter() - started, 1),
            "integer_only": bool(made.details.get("integer_only", False)),
        }
        return PassResult(made.model, True, (), details)

    def _parities(self) -> list[Parity]:
        outputs = self.given.original.outputs
        parts = parts_of(self.given.reference, outputs)
        return [
            Parity(tensor, parts[tensor.name], list_axis(tensor, self.given.inputs))
            for tensor in outputs
        ]

    def _holds(self, floats: tuple[str, ...]) -> bool:
        if floats not in self.tried:
            model = self.trials.model_with(floats).SerializeToString(deterministic=True)
            label = f"{plural(len(floats), 'layer')} float: "
            progress = self.stage.progress
            self.tried[floats] = evaluate(model, self.given, self.cache, progress, label=label)
        return not self._missed(floats)

    def _missed(self, floats: tuple[str, ...]) -> list[dict[str, Any]]:
        return missed(self.tried[floats], self.given)

    def _closeness(self, floats: tuple[str, ...]) -> tuple[float, ...]:
        """How near the gates: the fewest missed, then the metric, then SNR."""
        snr, points = told(self.tried[floats])
        return (
            -len(self._missed(floats)),
            float("-inf") if points is None else points,
            float("inf") if snr is None else snr,
        )

    def _told(self, floats: tuple[str, ...]) -> dict[str, Any]:
        snr, points = told(self.tried[floats])
        gates = [describe_gate(gate) for gate in self._missed(floats)]
        return {"layers": len(floats), "snr_db": snr, "metric_points": points, "missed": gates}

    def _weights(self) -> dict[str, int]:
        """Number of weights of every layer of the float graph."""
        proto = parsed(self.before.model).graph
        sizes = {tensor.name: len(tensor.raw_data) or 1 for tensor in proto.initializer}
        return {node.name: sum(sizes.get(i, 0) for i in node.input) for node in proto.node}


def _runs(model: bytes) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """As `measure` runs it."""
    return graph.Runner(rounded(model), literal=graph.signed_activations(parsed(model))).run


def _notes(found: Mapping[str, Any], record: Record) -> list[str]:
    """What was done and its price, in sentences."""
    returned, layers = found["returned"], found["layers"]
    costs = ", ".join(f"{layer['name']} {snr_text(layer)}" for layer in returned[:SPELT])
    more = f" and {len(returned) - SPELT} more" if len(returned) > SPELT else ""
    share = f"{len(returned)} of {plural(layers, 'layer')}"
    price = f"{share} back to float: {_price(record)}."
    named = f"SNR with that layer alone quantized: {costs}{more}." if returned else ""
    if found["holds"]:
        return [price, named]
    best = next(t for t in found["tried"] if t["layers"] == len(returned))
    if layers == 1:
        return ["Its one layer stays quantized: with that in float nothing is left of the pass."]
    return [
        f"No set of layers that go back to float holds the gates: "
        f"{plural(len(found['tried']) - 1, 'set')} tried, of up to "
        f"{max(t['layers'] for t in found['tried'])} of {plural(layers, 'layer')}.",
        f"The best of them: {price} It misses: {', '.join(best['missed'])}.",
        *([named] if named else []),
    ]


def _price(record: Record) -> str:
    """ "+2.1 points, +3.2 dB, +4 % ms, +1.10 MB"."""
    change = (record.measured or {})["change"]
    parts = [
        *_signed(change["metric_points"], lambda v: f"{v:.2f} points"),
        *_signed(change["snr_db"], decibel),
        *_signed(change["latency"], lambda v: f"{percent(v, 0)} ms"),
        *_signed(change["bytes"], bytes_text),
    ]
    return ", ".join(parts) or "nothing changed"


def _signed(value: float | None, text: Callable[[float], str]) -> list[str]:
    return [("−" if value < 0 else "+") + text(abs(value))] if value else []


def _not_worth_it(found: Mapping[str, Any], before: Graph, record: Record) -> list[str]:
    """Where so much went back to float that the pass hardly pays any more."""
    share = (record.bytes or 0) / len(before.model)
    latency = (record.measured or {})["latency"]
    if share < HALF or (latency and latency["ratio"] > 1):
        return []
    kept = found["layers"] - len(found["returned"])
    slow = ", and no faster than it" if latency else ""
    return [
        f"after the repair {kept} of {plural(found['layers'], 'layer')} are integer; the model has "
        f"{percent(share)} of the float one's bytes{slow}: fp16 (--chain half) or no pass at all "
        "(--chain none) would serve as well"
    ]
