"""The proof: a bundle is written, judged through the loader that ships, and only then published.

Nothing is judged in memory. A draft runs on this machine, isolated, and gives the answers that
every later device is held against; the whole evaluation set runs through the loader; the finished
file, report and all, is verified once more as the bytes that will ship.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import bundle, device, engine, files, report
from edgepack.cache import tool_versions
from edgepack.device import Local
from edgepack.errors import GateError, SpecError
from edgepack.ledger import Ledger
from edgepack.request import Request
from edgepack.runtime.device import peak_rss
from edgepack.runtime.gates import describe_gate
from edgepack.runtime.index import encode
from edgepack.runtime.metrics import TOP
from edgepack.runtime.run import read_npz
from edgepack.source.model import Source
from edgepack.stages import (
    EVALUATION_BATCH,
    Graph,
    Reference,
    SampleSets,
    emulate,
    evaluation_frames,
    evaluation_of,
    foreign,
)


@dataclass(frozen=True)
class Outcome:
    """What a build ended with.

    Attributes:
        path: the bundle, in its place; where a gate was missed, the rejected one kept aside.
        report: as JSON values.
        accepted: whether every gate held.
    """

    path: Path
    report: Mapping[str, Any]
    accepted: bool


@dataclass(frozen=True)
class Job:
    """Everything that the proof is about."""

    request: Request
    source: Source
    samples: SampleSets
    reference: Reference
    original: Graph
    graph: Graph

    @property
    def stands_in(self) -> tuple[str, ...]:
        """Options of the loader where this host stands in for another architecture."""
        return ("--any-arch",) if foreign(self.request.target) else ()


def prove(job: Job, host: Local, ledger: Ledger, started: float) -> Outcome:
    """Write, judge and publish; on a missed gate keep the bundle aside.

    Raises HostError where the place asked for cannot be written, and what the loader refuses with.
    """
    output = job.request.output
    with files.temporary_beside(output) as temporary:
        contents = draft(job)
        with ledger.stage("bundle") as stage:
            contents = _with_answers(contents, temporary, host, job.stands_in)
            content_digest = bundle.write(temporary, contents)
            stage.set(bytes=temporary.stat().st_size)
            stage.note(f"content {content_digest[:16]}")
        count, _ = evaluation_of(job.samples)
        with ledger.stage("verify", count) as stage:
            frames = evaluation_frames(job.samples, job.reference, job.graph.inputs)
            verdict, _ = device.ask(
                host, host.put(temporary), "verify", "--evaluation", *job.stands_in,
                stdin=_counted(frames, stage.progress.advance),
            )  # fmt: skip
            stage.note(f"{verdict['quality']['samples']:,} samples through the shipped loader")
        fidelity = emulate(job.request, temporary, ledger)
        if fidelity is not None:
            verdict["fidelity"] = fidelity
            verdict["passed"] = verdict["quality"]["passed"] and fidelity["passed"]
        latency = _latency(job, temporary, host, ledger)
        accepted = bool(verdict["passed"])
        contents = replace(contents, quality=_summary(verdict["quality"]))
        document = _report(job, verdict, latency, host, ledger, started)
        document["bundle"]["content_digest"] = bundle.write(temporary, contents)
        report.validate(document)
        contents = replace(
            contents,
            report={
                "report.html": report.render_html(document).encode(),
                "report.json": encode(document),
            },
        )
        bundle.write(temporary, contents)
        again, _ = device.ask(host, host.put(temporary), "verify", *job.stands_in)
        place = output if accepted else rejected(output)
        if accepted and not again["fidelity"]["passed"]:
            raise _unsteady(again)
        files.publish(temporary, place)
    document["bundle"]["bytes"] = place.stat().st_size
    return Outcome(place, document, accepted)


def rejected(output: Path) -> Path:
    """Where a bundle is kept whose gates were missed."""
    return output.with_name(f"{output.stem}.rejected{output.suffix}")


def missed(outcome: Outcome, ledger: Ledger) -> GateError:
    """The error for a bundle whose gates were missed, with the stage that lost it."""
    gates = [
        f"{question}: {describe_gate(gate)}"
        for question in ("quality", "fidelity")
        for gate in outcome.report[question]["gates"]
        if not gate["passed"]
    ]
    lost = ledger.first_loss()
    if lost is not None:
        gates.append(f"first lost in the stage {lost.stage!r}: {_snr(lost.parity)}")
    return GateError(
        "gate-missed",
        "the bundle was built and is not good enough; nothing was written at the place asked for",
        why="\n".join(gates),
        hint=f"it is kept at {outcome.path}, with its report\n"
        "more or better calibration samples, another calibrator, or a lower gate in the manifest",
    )


def _snr(parity: Mapping[str, Mapping[str, Any]] | None) -> str:
    told = []
    for output, metrics in (parity or {}).items():
        snr = metrics["snr_db"]
        told.append(f"{output} at {'exact' if snr is None else f'{snr:.1f} dB'} SNR after it")
    return ", ".join(told)


def draft(job: Job) -> bundle.Contents:
    """What goes into the bundle, before any answer of its own."""
    target = job.request.target
    bounds = gates(job)
    return bundle.Contents(
        name=job.request.name,
        target=target.name,
        device={
            "arch": target.arch,
            "isa": list(target.isa),
            "python": target.python,
            "engine": target.engine,
            "engine_version": target.engine_version,
        },
        inputs=job.graph.inputs,
        outputs=job.graph.outputs,
        model=job.graph.model,
        reference=[
            np.stack([feed[tensor.name] for feed in job.reference.feeds])
            for tensor in job.graph.inputs
        ],
        original=[np.stack(column) for column in zip(*job.reference.original, strict=True)],
        built=None,
        gates=bounds,
        metric=metric(job),
        provenance={
            "source": {
                "kind": job.source.kind,
                "sha256": job.source.digest,
                "trusted_pickle": job.source.trusted_pickle,
            },
            "samples": dict(job.samples.lint.digests),
            "proven": job.samples.proven,
            "chain": [
                {"pass": step.name, "options": dict(step.options)} for step in job.request.chain
            ],
        },
        tools=tool_versions(),
        requirements=engine.ENGINES[target.engine].requirements(),
    )


def metric(job: Job) -> str:
    """The task metric: as asked for, else top-1 where there are labels and scores."""
    scores = any(tensor.kind == "scores" for tensor in job.graph.outputs)
    asked = job.request.metric or ("max_drop" if "max_drop" in job.request.stated else "")
    if asked and not (scores and job.reference.labelled):
        raise SpecError(
            "metric-needs-labels",
            f"{asked} was asked for, and it cannot be measured",
            why="the evaluation samples have no labels" if scores else "no output is class scores",
            hint="store the labels under `labels` in the evaluation .npz"
            if scores
            else 'a manifest says which output is: [[outputs]] name = "...", kind = "scores"',
        )
    if not (scores and job.reference.labelled):
        return ""
    return job.request.metric or next(iter(TOP))


def gates(job: Job) -> dict[str, dict[str, Any]]:
    """The gates that hold: on the metric where there is one, else on agreement."""
    quality = dict(job.request.quality)
    unused = ("agreement",) if metric(job) else ("metric_ratio", "max_drop")
    for gate in unused:
        if gate not in job.request.stated:
            quality.pop(gate, None)
    bounds = dict(job.request.target.fidelity)
    exact = bool(bounds.pop("bit_exact", False)) and job.graph.integer_only
    return {"quality": quality, "fidelity": {"bit_exact": True} if exact else bounds}


def _with_answers(
    contents: bundle.Contents, path: Path, host: Local, options: Sequence[str]
) -> bundle.Contents:
    """Run a draft here, and take its answers as those of the build host."""
    bundle.write(path, contents)
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
        answers = Path(folder) / "built.npz"
        device.ask(host, host.put(path), "run", "--output", str(answers), *options)
        arrays = read_npz(str(answers))
    info, _ = device.ask(host, host.put(path), "device")
    return replace(
        contents,
        built=[arrays[tensor.name] for tensor in contents.outputs],
        build=info,
    )


def _counted(frames: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in frames:
        yield piece
        advance(EVALUATION_BATCH)


def _latency(job: Job, path: Path, host: Local, ledger: Ledger) -> dict[str, Any] | None:
    """Latency side by side with the original's fp32 graph, and whether it was worth it."""
    with ledger.stage("latency") as stage:
        if job.request.latency == "none":
            stage.set(status="skipped")
            stage.note("not asked for")
            return None
        if job.stands_in:
            stage.set(status="skipped")
            stage.note(f"to be measured on {job.request.target.arch}: python3 BUNDLE bench there")
            return None
        with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
            fp32 = Path(folder) / "original.onnx"
            fp32.write_bytes(job.original.model)
            found, _ = device.ask(
                host, host.put(path), "bench",
                "--length", job.request.latency, "--against", str(fp32),
            )  # fmt: skip
        stage.note(
            f"p50 {found['model']['p50']:.3f} ms, the original's fp32 graph "
            f"{found['original']['p50']:.3f} ms, in turns"
        )
    if found["ratio"] < 1:
        ledger.warn(
            f"this bundle is slower than its fp32 original on this machine: p50 "
            f"{found['model']['p50']:.3f} ms against {found['original']['p50']:.3f} ms"
        )
    return found


def _summary(quality: Mapping[str, Any]) -> dict[str, Any]:
    return {key: quality[key] for key in ("on", "samples", "outputs", "metric", "passed")}


def _sample_sets(job: Job) -> dict[str, Any]:
    lint = job.samples.lint
    found: dict[str, Any] = {"calibration": None, "evaluation": None}
    for role, samples in (
        ("calibration", job.samples.calibration),
        ("evaluation", job.samples.evaluation),
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
        found["evaluation"]["labels"] = job.reference.labelled
    return found


_TIMING = ("p50", "p90", "queries", "seconds")


def _report(
    job: Job, verdict: Mapping[str, Any], latency: Mapping[str, Any] | None, host: Local,
    ledger: Ledger, started: float,
) -> dict[str, Any]:  # fmt: skip
    passed = bool(verdict["passed"])
    request = job.request
    model_bytes, original_bytes = len(job.graph.model), len(job.original.model)
    return {
        "format": report.FORMAT,
        "verdict": "fail" if not passed else "pass" if job.samples.proven else "unproven",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": request.name,
        "target": {
            "name": request.target.name,
            "summary": request.target.summary,
            "precision": "int8" if any(s.name == "quantize" for s in request.chain) else "fp32",
        },
        "source": {
            "path": request.model.name,
            "kind": job.source.kind,
            "digest": job.source.digest,
            "parameters": job.source.parameters,
            "bytes": job.source.bytes,
            "trusted_pickle": job.source.trusted_pickle,
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
        "quality": verdict["quality"],
        "fidelity": verdict["fidelity"],
        "latency": None
        if latency is None
        else {
            "unit": "ms",
            "length": latency["length"],
            "threads": latency["threads"],
            "ratio": latency["ratio"],
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
        "sizes": {
            "original_bytes": original_bytes,
            "model_bytes": model_bytes,
            "ratio": model_bytes / original_bytes,
        },
        "build": {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_rss_bytes": peak_rss(),
        },
        "device": verdict["device"],
        "isolation": {"network": host.network, "hidden": verdict["hidden"]},
        "tools": tool_versions(),
        "warnings": list(ledger.warnings),
        "slower": latency is not None and latency["ratio"] < 1,
    }


def _unsteady(verdict: Mapping[str, Any]) -> GateError:
    told: Sequence[str] = [
        describe_gate(gate) for gate in verdict["fidelity"]["gates"] if not gate["passed"]
    ]
    return GateError(
        "build-unsteady",
        "the same bundle answered differently twice on this machine",
        why="\n".join(told),
        hint="the hardware or the engine is not to be trusted; run it on another machine",
    )
