"""The account of a build: its report as JSON values."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack import report
from edgepack.cache import tool_versions
from edgepack.chain import Step
from edgepack.device import Local
from edgepack.ledger import Ledger
from edgepack.proof.job import Job, rejected
from edgepack.runtime.device.machine import peak_rss

_TIMING = ("p50", "p90", "queries", "seconds")


def _sample_sets(job: Job) -> dict[str, Any]:
    lint = job.samples.lint
    found: dict[str, Any] = {"calibration": None, "evaluation": None, "training": None}
    for role, samples in (
        ("calibration", job.samples.calibration),
        ("evaluation", job.samples.evaluation),
        ("training", job.samples.training),
    ):
        if samples is not None and role in lint.counts:
            found[role] = {
                # As of the model, the name alone: a bundle goes to places that need not know
                # where things lie here.
                "origin": Path(samples.origin).name,
                "count": lint.counts[role],
                "digest": lint.digests[role],
            }
    if found["evaluation"]:
        labels = job.reference.labels
        found["evaluation"]["labels"] = labels.used
        if labels.unused:
            found["evaluation"]["labels_unused"] = labels.unused
    return found


def _precision(steps: Sequence[Step]) -> str:
    """Of a model after these passes, in a word or two."""
    found = {"half": "fp16", "quantize": "int8"}
    for step in steps:
        if step.name == "quantize" and step.options.get("mode") == "weights":
            found["quantize"] = f"int{step.options.get('bits', 8)} weights"
    passes = {step.name for step in steps}
    return "+".join(found[name] for name in ("quantize", "half") if name in passes) or "fp32"


def _sizes(job: Job, ledger: Ledger) -> dict[str, Any]:
    """Compare the model's bytes with the file that the user gave.

    An ONNX file is compared as it is. Of any other source the smaller of the file and its exported
    fp32 graph counts: a checkpoint may hold an optimizer's state, or weights in fp16.
    """
    model, file = len(job.graph.model), job.source.bytes
    export = next(record.bytes for record in ledger.records if record.stage == "export")
    export = len(job.original.model) if export is None else export
    basis = "file" if job.source.kind == "onnx" or file <= export else "export"
    original = file if basis == "file" else export
    return {
        "original_bytes": original,
        "model_bytes": model,
        "ratio": model / original,
        "basis": basis,
        "file_bytes": file,
        "export_bytes": export,
    }


def account(
    job: Job, verdict: Mapping[str, Any], emulated: Mapping[str, Mapping[str, Any]],
    latency: Mapping[str, Any] | None, host: Local, ledger: Ledger, started: float,
) -> dict[str, Any]:  # fmt: skip
    """The report of a job, after its verdict.

    Args:
        job: what was proved.
        verdict: what the loader found on the evaluation set.
        emulated: the fidelity on the target's CPUs, emulated.
        latency: what `bench` found, or None.
        host: the device that it was found on.
        ledger: the records so far.
        started: when the build began, by `time.perf_counter`.
    """
    passed = bool(verdict["passed"])
    request = job.request
    model_bytes = len(job.graph.model)
    document = {
        "format": report.FORMAT,
        "verdict": "fail" if not passed else "pass" if job.samples.proven else "unproven",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": request.name,
        "target": {
            "name": request.target.name,
            "summary": request.target.summary,
            "precision": _precision(request.chain),
        },
        "source": {
            "path": request.model.name,
            "kind": job.source.kind,
            "digest": job.source.digest,
            "parameters": job.source.parameters,
            "bytes": job.source.bytes,
            "trusted_pickle": job.source.trusted_pickle,
            "weights": None if job.source.selection is None else dict(job.source.selection),
        },
        "bundle": {
            "path": (request.output if passed else rejected(request.output)).name,
            "bytes": None,
            "content_digest": verdict["bundle"]["content_digest"],
            "model_bytes": model_bytes,
        },
        "inputs": [tensor.to_json() for tensor in job.graph.inputs],
        "outputs": [tensor.to_json() for tensor in job.graph.outputs],
        "samples": _sample_sets(job),
        "ledger": [record.to_json() for record in ledger.records],
        "quality": {k: v for k, v in verdict["quality"].items() if k != "reference"},
        "fidelity": verdict["fidelity"],
        "emulated": dict(emulated),
        "latency": None
        if latency is None
        else {
            "unit": "ms",
            "length": latency["length"],
            "threads": latency["threads"],
            "ratio": latency["ratio"],
            "load": latency["load"],
            "spread": latency["spread"],
            "disturbed": latency["disturbed"],
            "rounds": [
                {"model": model, "original": original}
                for model, original in zip(
                    latency["model"]["rounds_p50"], latency["original"]["rounds_p50"], strict=True
                )
            ],
            **{
                side: {key: latency[side][key] for key in _TIMING} for side in ("model", "original")
            },
        },
        "memory": {
            "peak_rss_bytes": latency["model"]["peak_rss_bytes"]
            if latency
            else verdict["memory"]["peak_rss_bytes"]
        },
        "sizes": _sizes(job, ledger),
        "build": {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_rss_bytes": peak_rss(),
        },
        "device": verdict["device"],
        "stands_in": bool(job.stands_in),
        "isolation": {"network": host.network, "hidden": verdict["hidden"]},
        "tools": tool_versions(),
        "warnings": list(ledger.warnings),
        "slower": latency is not None and latency["ratio"] < 1,
    }
    return {**document, "cautions": report.cautions(document)}
