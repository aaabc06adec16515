"""Report of a build, as JSON values."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from pathlib import Path

from edgepack import report
from edgepack.context import BuildContext
from edgepack.data import Samples
from edgepack.device import Local, require_fidelity
from edgepack.passes import name_precision
from edgepack.proof.decision import Decision
from edgepack.proof.job import Job, list_tools, reject_path
from edgepack.report.documents import (
    BundleSection,
    LatencySection,
    Report,
    Round,
    SampleSet,
    SampleSets,
    Sizes,
    SourceSection,
    TimingSection,
)
from edgepack.runtime.device.machine import peak_rss
from edgepack.runtime.documents import Comparison, Question, Timing, Verdict


def _describe_sample_sets(job: Job) -> SampleSets:
    """Describe the samples by role; None for a role without samples."""
    samples = job.context.samples
    evaluation = _describe_sample_set(job, "evaluation", samples.evaluation)
    if evaluation:
        labels = job.context.reference.labels
        evaluation["labels"] = labels.used
        if labels.unused:
            evaluation["labels_unused"] = labels.unused
    return {
        "calibration": _describe_sample_set(job, "calibration", samples.calibration),
        "evaluation": evaluation,
        "training": _describe_sample_set(job, "training", samples.training),
    }


def _describe_sample_set(job: Job, role: str, samples: Samples | None) -> SampleSet | None:
    lint = job.context.samples.lint
    if samples is None or role not in lint.counts:
        return None
    return {
        # The name alone: a bundle is shared, and must not disclose the folders of this machine.
        "origin": Path(samples.origin).name,
        "count": lint.counts[role],
        "digest": lint.digests[role],
    }


def _compare_sizes(job: Job) -> Sizes:
    """Compare the model's bytes with the user's file.

    An ONNX file is compared as it is. For any other source the smaller of the file and its
    exported fp32 graph counts: a checkpoint may hold an optimizer's state, or weights in fp16.
    A 60 MB checkpoint of a 20 MB network that becomes 5 MB has the ratio 0.25, not 0.08.
    """
    context, model = job.context, len(job.graph.model)
    file = context.source.bytes
    export = _find_export_bytes(context)
    basis, original = "export", export
    if context.source.kind == "onnx" or file <= export:
        basis, original = "file", file
    return {
        "original_bytes": original,
        "model_bytes": model,
        "ratio": model / original,
        "basis": basis,
        "file_bytes": file,
        "export_bytes": export,
    }


def _find_export_bytes(context: BuildContext) -> int:
    for record in context.ledger.records:
        if record.stage == "export" and record.bytes is not None:
            return record.bytes
    # A skipped export has no size in the ledger: the graph came with the model.
    return len(context.original.model)


def make_report(
    job: Job, verdict: Verdict, emulated: Mapping[str, Question],
    latency: Comparison | None, host: Local, decision: Decision,
) -> Report:  # fmt: skip
    """Return the report of a job, after its verdict.

    Args:
        job: the job.
        verdict: the loader's verdict on the evaluation set.
        emulated: the fidelity on the target's emulated CPUs.
        latency: the result of `bench`, or None.
        host: the device that the verdict is from.
        decision: the build's verdict.
    """
    ledger = job.context.ledger
    # `bench` runs the model in a process of its own; without it, that of `verify` counts.
    peak = verdict["memory"]["peak_rss_bytes"]
    if latency:
        peak = latency["model"]["peak_rss_bytes"]
    quality, fidelity = verdict["quality"].copy(), require_fidelity(verdict)
    # The index records the figures of the reference samples.
    quality.pop("reference", None)
    document: Report = {
        "format": report.FORMAT,
        "verdict": decision.verdict,
        "reasons": list(decision.reasons),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": job.request.name,
        "target": {
            "name": job.request.target.name,
            "summary": job.request.target.summary,
            "precision": job.graph.form or name_precision(job.request.chain),
        },
        "source": _describe_source(job),
        "bundle": _describe_bundle(job, verdict, decision),
        "inputs": [tensor.to_json() for tensor in job.graph.inputs],
        "outputs": [tensor.to_json() for tensor in job.graph.outputs],
        "samples": _describe_sample_sets(job),
        "ledger": [record.to_json() for record in ledger.records],
        "quality": quality,
        "fidelity": fidelity,
        "emulated": dict(emulated),
        "latency": _describe_latency(latency),
        "memory": {"peak_rss_bytes": peak},
        "sizes": _compare_sizes(job),
        "build": {
            "seconds": round(time.perf_counter() - ledger.started, 3),
            "peak_rss_bytes": peak_rss(),
        },
        "device": verdict["device"],
        "stands_in": bool(job.stands_in),
        "isolation": {"network": host.network, "hidden": verdict["hidden"]},
        "tools": list_tools(job),
        "warnings": list(ledger.warnings),
        "slower": latency is not None and latency["ratio"] < 1,
    }
    auction = ledger.find_auction()
    if auction is not None:
        share = auction["seconds"] / document["build"]["seconds"]
        document["auction"] = {**auction, "share": round(share, 4)}
    if verdict["preprocessing"] is not None:
        document["preprocessing"] = verdict["preprocessing"]
    # Cautions are drawn from the report's own figures, so that readers of it can check them.
    document["cautions"] = report.list_cautions(document)
    return document


def _describe_source(job: Job) -> SourceSection:
    source = job.context.source
    return {
        "path": job.request.model.name,
        "kind": source.kind,
        "digest": source.digest,
        "parameters": source.parameters,
        "bytes": source.bytes,
        "trusted_pickle": source.trusted_pickle,
        "weights": source.selection,
    }


def _describe_bundle(job: Job, verdict: Verdict, decision: Decision) -> BundleSection:
    path = job.request.output
    if not decision.accepted:
        path = reject_path(path)
    return {
        "path": path.name,
        # Known only after the report is in it.
        "bytes": None,
        "content_digest": verdict["bundle"]["content_digest"],
        "model_bytes": len(job.graph.model),
    }


def _describe_latency(latency: Comparison | None) -> LatencySection | None:
    if latency is None:
        return None
    # Both models ran in turns, so their medians pair up: one round is one entry.
    rounds: list[Round] = []
    pairs = zip(latency["model"]["rounds_p50"], latency["original"]["rounds_p50"], strict=True)
    for model, original in pairs:
        rounds.append({"model": model, "original": original})
    return {
        "unit": "ms",
        "length": latency["length"],
        "threads": latency["threads"],
        "ratio": latency["ratio"],
        "load": latency["load"],
        "spread": latency["spread"],
        "disturbed": latency["disturbed"],
        "rounds": rounds,
        "model": _describe_timing(latency["model"]),
        "original": _describe_timing(latency["original"]),
    }


def _describe_timing(timing: Timing) -> TimingSection:
    return {
        "p50": timing["p50"],
        "p90": timing["p90"],
        "queries": timing["queries"],
        "seconds": timing["seconds"],
    }
