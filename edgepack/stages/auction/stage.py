"""Stage `auction`: choose the form of the model and its engine by measurement.

The decision is cached under all that it depends on, this CPU and the engines' versions included, so
that a repeated build gives the same bundle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata

from edgepack import engine, report
from edgepack.cache import Entry
from edgepack.context import BuildContext, Graph
from edgepack.context.graph import describe_tensors, digest_model
from edgepack.errors import DeviceError
from edgepack.host import is_foreign, stands_in
from edgepack.ledger import AuctionDocument, CandidateDocument, QuickLatency, Stage
from edgepack.runtime.bundle.engines import ONNXRUNTIME, Variant
from edgepack.runtime.commands.load import spread_of
from edgepack.runtime.device.machine import describe
from edgepack.runtime.documents import Measurement
from edgepack.stages.auction.candidate import FP32, Candidate
from edgepack.stages.auction.decision import Bid, choose
from edgepack.stages.auction.forms import find_own_variant, list_candidates
from edgepack.stages.auction.halving import TimeCost, Timed
from edgepack.stages.auction.instructions import (
    InstructionCost,
    describe_counts,
    list_compared,
    select_cpus,
)
from edgepack.stages.measure import evaluate, list_missed_gates, measure, summarize_quality

# Seconds after which no further candidate starts: a share of the build so far, within limits.
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.2, 3.0, 20.0


def hold_auction(graph: Graph, context: BuildContext) -> Graph:
    """Return the graph that ships: the best form that holds the gates, with its variants.

    Args:
        graph: result of the chain.
        context: the build.
    """
    with context.ledger.stage("auction") as stage:
        cpus, reason = find_cpus(context)
        if reason:
            stage.set(status="skipped")
            stage.note(reason)
            return replace(graph, before=None, trials=None)
        key = context.cache.key("auction", {**_describe_key(graph, context), "cpus": cpus})
        entry = context.cache.get("auction", key)
        if entry is None:
            winner, document = _compare(graph, context, stage, cpus)
            entry = context.cache.put("auction", key, {"model.onnx": winner.model}, document)
        else:
            stage.set(status="cached")
        result = _read_winner(entry, graph, context)
        stage.note(*entry.document["notes"])
        stage.set(auction=entry.document["auction"])
        first = result.variants[0] if result.variants else find_own_variant(context.request.target)
        quality = _evaluate(Candidate(result.form, result, first), context, stage)
        measure(result, context, stage, quality, entry.document["latency"])
    context.ledger.warn(*entry.document["warnings"])
    return result


def find_cpus(context: BuildContext) -> tuple[tuple[str, ...], str]:
    """Return the emulated CPUs that count instructions, and the reason for no auction.

    Without CPUs and without a reason, this machine measures times.
    """
    request = context.request
    if not request.optimize.weights:
        return (), "--optimize none"
    if request.latency == "none":
        return (), "--latency none: candidates are compared by measurement"
    if engine.find_runtime(request.target) == ONNXRUNTIME and is_foreign(request.target):
        cpus, reason = select_cpus(context)
        if reason:
            reason = f"this host does not run what {request.target.name} is for: {reason}"
        return cpus, reason
    if stands_in(request.target):
        return (), f"this host does not run what {request.target.name} is for"
    return (), ""


def _describe_key(graph: Graph, context: BuildContext) -> Mapping[str, object]:
    """Return all that decides an auction, for the cache."""
    request, device = context.request, describe()
    versions = {}
    for package in ("onnxruntime", "openvino"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    variants = engine.list_alternatives(request.target)
    return {
        "graph": digest_model(graph.model),
        "before": digest_model(graph.before.model) if graph.before else "",
        "original": [digest_model(context.original.model), context.reference.digest],
        "outputs": describe_tensors(context.original.outputs),
        "chain": [[step.name, step.key_parts()] for step in request.chain],
        "default_chain": request.chain_is_default,
        "calibration": context.samples.lint.digests.get("calibration"),
        "evaluation": context.samples.evaluation_digest,
        "metric": context.metric_key,
        "gates": [dict(context.bounds), dict(request.metric_gates)],
        "objective": [str(request.optimize), request.optimize.requested],
        "variants": [variant.to_json() for variant in variants],
        "cpu": [device["cpu"], device["cores"]],
        "versions": versions,
    }


def _compare(
    graph: Graph, context: BuildContext, stage: Stage, cpus: Sequence[str]
) -> tuple[Graph, dict[str, object]]:
    """Measure and judge the candidates; return the winner's graph, and the cache's document."""
    started = time.perf_counter()
    request, own = context.request, find_own_variant(context.request.target)
    qualities: dict[str, Measurement] = {}
    timed: list[Timed] = []
    notes: list[str] = []
    if cpus:
        counter = InstructionCost(context.reference.feeds[0], cpus)
        bids = _count(list_compared(graph, context), counter, notes)
        unit, noise = counter.unit, counter.noise
    else:
        candidates = list_candidates(graph, context, notes)
        # Profiles and further forms have taken their part of it already.
        allowed = min(max(SHARE * (started - context.ledger.started), LEAST_SECONDS), MOST_SECONDS)
        budget = allowed - (time.perf_counter() - started)
        clock = TimeCost(context.reference.feeds[0], budget)
        bids = _time(candidates, clock)
        unit, noise, timed = clock.unit, clock.noise, clock.results
        notes += [f"disturbed: {disturbance}" for disturbance in clock.disturbed]

    def judge(bid: Bid) -> list[str]:
        try:
            quality = _evaluate(bid.candidate, context, stage)
        except DeviceError as error:
            # It ran on one sample, but not on all of them.
            return [f"an evaluation in it: {error.why or error.what}"]
        qualities[bid.candidate.name] = quality
        missed = list_missed_gates(quality, context)
        if bid.candidate.engine != own.engine:
            # Devices without that engine run the same file in the profile's own.
            quality = _evaluate(replace(bid.candidate, variant=own), context, stage)
            missed = missed or list_missed_gates(quality, context)
        return [report.describe_gate(gate) for gate in missed]

    winner = choose(bids, request.optimize, noise, judge)
    warnings = []
    # Without any form that holds the gates, the proof refuses the chain's result and says why.
    chosen = winner or next(bid for bid in bids if bid.candidate.graph.model == graph.model)
    if winner is None:
        notes.append("No form holds the gates.")
    elif request.chain_is_default and winner.candidate.form == FP32 and len(bids) > 1:
        loser = next((bid for bid in bids if bid.candidate.graph.model == graph.model), None)
        if loser is not None and loser is not winner:
            warnings.append(f"the bundle is fp32: {loser.candidate.name} {loser.reason}")
    document: AuctionDocument = {
        "objective": str(request.optimize),
        "unit": unit,
        "noise": round(noise, 4),
        "seconds": round(time.perf_counter() - started, 2),
        "winner": chosen.candidate.name,
        "candidates": [_describe(bid, bids[0], qualities) for bid in bids],
    }
    note = f"{chosen.candidate.name} of {len(bids)} candidates, in {document['seconds']:.1f} s."
    # The terminal shows the first note: of counts the finding, which no table has.
    notes = [*notes, note] if cpus else [note, *notes]
    return chosen.candidate.graph, {
        "form": chosen.candidate.form,
        "variant": chosen.candidate.variant.name,
        "integer_only": chosen.candidate.graph.integer_only,
        "returned": list(chosen.candidate.graph.returned),
        "auction": document,
        "latency": _describe_latency(timed[bids.index(chosen)], timed[0]) if timed else None,
        "notes": notes,
        "warnings": warnings,
    }


def _time(candidates: Sequence[Candidate], clock: TimeCost) -> list[Bid]:
    """Measure the candidates on this machine."""
    costs, bids = clock.measure(candidates), []
    for candidate, cost, timed in zip(candidates, costs, clock.results, strict=True):
        bids.append(Bid(candidate, cost, timed.peak_rss, timed.reason))
    return bids


def _count(
    candidates: Sequence[Candidate], counter: InstructionCost, notes: list[str]
) -> list[Bid]:
    """Count the candidates' instructions on emulated CPUs."""
    costs = counter.measure(candidates)
    notes += describe_counts(counter, candidates)
    bids = []
    for candidate, cost in zip(candidates, costs, strict=True):
        bids.append(Bid(candidate, cost, quantity=counter.unit))
    return bids


def _evaluate(candidate: Candidate, context: BuildContext, stage: Stage) -> Measurement:
    variant = candidate.variant
    return evaluate(
        candidate.graph.model,
        context,
        stage.progress,
        label=f"{candidate.name}: ",
        engine=variant.engine,
        settings=variant.settings,
    )


def _describe_latency(timed: Timed, base: Timed) -> QuickLatency:
    latency: QuickLatency = {
        "p50": timed.p50,
        "original": base.p50,
        "ratio": base.p50 / timed.p50,
        "queries": timed.queries,
        "spread": spread_of(timed.rounds),
    }
    return latency


def _describe(bid: Bid, base: Bid, qualities: Mapping[str, Measurement]) -> CandidateDocument:
    candidate, runs = bid.candidate, math.isfinite(bid.cost)
    quality = qualities.get(candidate.name)
    snr, points = summarize_quality(quality) if quality else (None, None)
    return {
        "name": candidate.name,
        "form": candidate.form,
        "engine": candidate.engine,
        "settings": dict(candidate.variant.settings.to_json()),
        "bytes": candidate.bytes,
        "cost": bid.cost if runs else None,
        "ratio": base.cost / bid.cost if runs else None,
        "peak_rss_bytes": bid.memory or None,
        "judged": quality is not None,
        "snr_db": snr,
        "metric_points": points,
        "reason": bid.reason,
    }


def _read_winner(entry: Entry, graph: Graph, context: BuildContext) -> Graph:
    """Return the graph of a decision."""
    document, target = entry.document, context.request.target
    own = find_own_variant(target)
    variants: tuple[Variant, ...] = ()
    for variant in engine.list_alternatives(target):
        # A device without that engine runs the profile's own.
        if variant.name == document["variant"]:
            variants = (variant, own)
    returned: Sequence[str] = document["returned"]
    return replace(
        graph,
        model=(entry.folder / "model.onnx").read_bytes(),
        integer_only=bool(document["integer_only"]),
        returned=tuple(returned),
        variants=variants,
        form=str(document["form"]),
        before=None,
        trials=None,
    )
