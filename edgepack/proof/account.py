"""Report of a build, as JSON values."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack import report
from edgepack.data import Samples
from edgepack.device import Local
from edgepack.passes import name_precision
from edgepack.proof.job import Job, list_tools, reject_path
from edgepack.runtime.device.machine import peak_rss

_TIMING = ("p50", "p90", "queries", "seconds")


def _describe_sample_sets(job: Job) -> dict[str, Any]:
    """Describe the samples by role; None for a role without samples."""
    sets = {
        "calibration": job.context.samples.calibration,
        "evaluation": job.context.samples.evaluation,
        "training": job.context.samples.training,
    }
    result: dict[str, Any] = {
        role: _describe_sample_set(job, role, samples) for role, samples in sets.items()
    }
    if result["evaluation"]:
        labels = job.context.reference.labels
        result["evaluation"]["labels"] = labels.used
        if labels.unused:
            result["evaluation"]["labels_unused"] = labels.unused
    return result


def _describe_sample_set(job: Job, role: str, samples: Samples | None) -> dict[str, Any] | None:
    lint = job.context.samples.lint
    if samples is None or role not in lint.counts:
        return None
    return {
        # The name alone: a bundle is shared, and must not disclose the folders of this machine.
        "origin": Path(samples.origin).name,
        "count": lint.counts[role],
        "digest": lint.digests[role],
    }


def _compare_sizes(job: Job) -> dict[str, Any]:
    """Compare the model's bytes with the user's file.

    An ONNX file is compared as it is. For any other source the smaller of the file and its
    exported fp32 graph counts: a checkpoint may hold an optimizer's state, or weights in fp16.
    A 60 MB checkpoint of a 20 MB network that becomes 5 MB has the ratio 0.25, not 0.08.
    """
    context, model = job.context, len(job.graph.model)
    file = context.source.bytes
    export = next(record.bytes for record in context.ledger.records if record.stage == "export")
    if export is None:
        export = len(context.original.model)
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


def make_report(
    job: Job, verdict: Mapping[str, Any], emulated: Mapping[str, Mapping[str, Any]],
    latency: Mapping[str, Any] | None, host: Local,
) -> dict[str, Any]:  # fmt: skip
    """Return the report of a job, after its verdict.

    Args:
        job: the job.
        verdict: the loader's verdict on the evaluation set.
        emulated: the fidelity on the target's emulated CPUs.
        latency: the result of `bench`, or None.
        host: the device that the verdict is from.
    """
    ledger = job.context.ledger
    # `bench` runs the model in a process of its own; without it, that of `verify` counts.
    memory = latency["model"] if latency else verdict["memory"]
    document = {
        "format": report.FORMAT,
        "verdict": _decide_verdict(job, verdict),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": job.request.name,
        "target": {
            "name": job.request.target.name,
            "summary": job.request.target.summary,
            "precision": name_precision(job.request.chain),
        },
        "source": _describe_source(job),
        "bundle": _describe_bundle(job, verdict),
        "inputs": [tensor.to_json() for tensor in job.graph.inputs],
        "outputs": [tensor.to_json() for tensor in job.graph.outputs],
        "samples": _describe_sample_sets(job),
        "ledger": [record.to_json() for record in ledger.records],
        "quality": {k: v for k, v in verdict["quality"].items() if k != "reference"},
        "fidelity": verdict["fidelity"],
        "emulated": dict(emulated),
        "latency": _describe_latency(latency),
        "memory": {"peak_rss_bytes": memory["peak_rss_bytes"]},
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
    return {**document, "cautions": report.list_cautions(document)}


def _decide_verdict(job: Job, verdict: Mapping[str, Any]) -> str:
    """Return "fail" on a missed gate, also of random samples; else "pass" or "unproven"."""
    if not verdict["passed"]:
        return "fail"
    if not job.context.samples.proven:
        return "unproven"
    return "pass"


def _describe_source(job: Job) -> dict[str, Any]:
    source = job.context.source
    return {
        "path": job.request.model.name,
        "kind": source.kind,
        "digest": source.digest,
        "parameters": source.parameters,
        "bytes": source.bytes,
        "trusted_pickle": source.trusted_pickle,
        "weights": None if source.selection is None else dict(source.selection),
    }


def _describe_bundle(job: Job, verdict: Mapping[str, Any]) -> dict[str, Any]:
    path = job.request.output
    if not verdict["passed"]:
        path = reject_path(path)
    return {
        "path": path.name,
        # Known only after the report is in it.
        "bytes": None,
        "content_digest": verdict["bundle"]["content_digest"],
        "model_bytes": len(job.graph.model),
    }


def _describe_latency(latency: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    rounds = zip(latency["model"]["rounds_p50"], latency["original"]["rounds_p50"], strict=True)
    return {
        "unit": "ms",
        "length": latency["length"],
        "threads": latency["threads"],
        "ratio": latency["ratio"],
        "load": latency["load"],
        "spread": latency["spread"],
        "disturbed": latency["disturbed"],
        "rounds": [{"model": model, "original": original} for model, original in rounds],
        "model": {key: latency["model"][key] for key in _TIMING},
        "original": {key: latency["original"][key] for key in _TIMING},
    }
