"""The proof: a bundle is written, judged through the loader that ships, and only then published.

Nothing is judged in memory. A draft runs on this machine, isolated, and gives the answers that
every later device is held against; the whole evaluation set runs through the loader; the finished
file, report and all, is verified once more as the bytes that will ship.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import bundle, device, files, report, signing
from edgepack.device import Local
from edgepack.errors import ChainError, EdgepackError, GateError
from edgepack.graph.sizes import bind_sizes, resized
from edgepack.ledger import Ledger, Record
from edgepack.proof.account import account
from edgepack.proof.job import Job, draft, lowered, rejected
from edgepack.report import describe_gate
from edgepack.runtime.bundle.document import encode
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.commands.run import read_npz
from edgepack.stages import EVALUATION_BATCH, emulate, evaluation_frames, evaluation_of


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


def prove(job: Job, host: Local, ledger: Ledger, started: float) -> Outcome:
    """Write, judge and publish; on a missed gate keep the bundle aside.

    Raises HostError where the place asked for cannot be written, and what the loader refuses with.
    """
    output = job.request.output
    with files.temporary_beside(output) as temporary:
        contents = draft(job)
        ledger.warn(*lowered(job.request), *_few(job, contents.gates["quality"]))
        with ledger.stage("bundle") as stage:
            contents = _with_answers(contents, temporary, host, job.stands_in)
            bundle.write(temporary, contents)
            stage.set(bytes=temporary.stat().st_size)
            stage.note(f"the model, the loader, {len(contents.reference[0])} reference samples")
        count, _ = evaluation_of(job.samples)
        with ledger.stage("verify", count) as stage:
            frames = evaluation_frames(job.samples, job.reference, job.graph.inputs)
            verdict, _ = device.ask(
                host, host.put(temporary), "verify", "--evaluation", *job.stands_in,
                stdin=_counted(frames, stage.progress.advance),
            )  # fmt: skip
            stage.note(f"{verdict['quality']['samples']:,} samples through the shipped loader")
        emulated = emulate(job.request, temporary, verdict, job.graph.integer_only, ledger)
        _decide(job, verdict, emulated)
        latency = _latency(job, temporary, host, ledger)
        accepted = bool(verdict["passed"])
        contents = replace(
            contents,
            quality={**_summary(verdict["quality"]), "passed": accepted},
            wheels=job.wheels,
        )
        document = account(job, verdict, emulated, latency, host, ledger, started)
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
        if accepted and not again["passed"]:
            raise _unsteady(again)
        # A signature says that the bundle may be used: one that was rejected gets none.
        key = job.request.sign if accepted else None
        signature = signing.sign(temporary, key) if key else b""
        document["bundle"]["sha256"] = bundle.publish(temporary, place, signature)
    if key:
        document["bundle"]["signed"] = signing.fingerprint(key)
    document["bundle"]["bytes"] = place.stat().st_size
    return Outcome(place, document, accepted)


def missed(outcome: Outcome, ledger: Ledger) -> GateError:
    """The error for a bundle whose gates were missed, with the stage that lost it."""
    gates = [
        f"{question}{_on(outcome.report[question])}: {describe_gate(gate)}"
        for question in ("quality", "fidelity")
        for gate in outcome.report[question]["gates"]
        if not gate["passed"]
    ]
    hints = [f"it is kept at {outcome.path}, with its report"]
    if not outcome.report["quality"]["passed"]:
        lost = ledger.lost_in() or ledger.first_loss()
        if lost is not None:
            gates.append(f"first lost in the stage {lost.stage!r}: {_snr(lost.parity)}")
        for record in ledger.records:
            if record.stage == "repair":
                gates += record.notes
        hints.append(_cure(lost))
    if _saturated(outcome.report):
        hints.append(
            "full-range weights saturate without VNNI, pair-safe ones give the same bits: "
            "--chain quantize:range=pair-safe"
        )
    return GateError(
        "gate-missed",
        "the bundle was built and is not good enough; nothing was written at the place asked for",
        why="\n".join(gates),
        hint="\n".join(hints),
    )


def _cure(lost: Record | None) -> str:
    """What may win back the quality that a stage lost."""
    stage = "" if lost is None else lost.stage
    if stage in ("simplify", "export"):
        return "a gate that the exported original misses is for no chain to hold: lower it"
    cures = {
        "prune": "train it again after that (--chain prune,distill), cut less",
        "factorize": "train it again after that (--chain factorize,distill), cut less",
        "distill": "train for longer, on more samples",
        "quantize": "more or better calibration samples, another calibrator, training for int8 "
        "(--chain distill:aware=true,quantize)",
    }
    cure = cures.get(stage, "more or better calibration samples, another chain")
    return f"{cure}, or a lower gate in the manifest"


def _saturated(document: Mapping[str, Any]) -> bool:
    """Whether an emulated x86 answered otherwise than this one, with full-range weights."""
    ranges = [s["details"].get("range") for s in document["ledger"] if s["stage"] == "quantize"]
    native = document["device"]["arch"] == "x86_64" and not document["stands_in"]
    return native and "full" in ranges and "device" in document["fidelity"]


def _on(question: Mapping[str, Any]) -> str:
    return f" on {question['device']}" if "device" in question else ""


def _decide(job: Job, verdict: dict[str, Any], emulated: Mapping[str, Mapping[str, Any]]) -> None:
    """Lay what the target's CPUs answered over what this host did.

    One that missed decides; where this host only stands in for the target, the first of them does.
    """
    missed = [cpu for cpu, fidelity in emulated.items() if not fidelity["passed"]]
    deciding = missed or (list(emulated) if job.stands_in else [])
    if deciding:
        cpu = deciding[0]
        verdict["fidelity"] = {**emulated[cpu], "device": f"{cpu}, emulated"}
        verdict["passed"] = verdict["quality"]["passed"] and verdict["fidelity"]["passed"]


def _snr(parity: Mapping[str, Mapping[str, Any]] | None) -> str:
    told = []
    for output, metrics in (parity or {}).items():
        snr = metrics["snr_db"]
        told.append(f"{output} at {'exact' if snr is None else f'{snr:.1f} dB'} SNR after it")
    return ", ".join(told)


def _with_answers(
    contents: bundle.Contents, path: Path, host: Local, options: Sequence[str]
) -> bundle.Contents:
    """Run a draft here, and take its answers as those of the build host."""
    bundle.write(path, contents)
    with files.temporary_folder() as folder:
        answers = folder / "built.npz"
        sizes = []
        try:
            device.ask(host, host.put(path), "run", "--output", str(answers), *options)
            sizes = [
                replace(size, built=_at_size(contents, size, folder, path, host, options))
                for size in contents.sizes
            ]
        except EdgepackError as error:
            if error.code != "output-ragged":
                raise
            # The reference samples were chosen so that the original's outputs are of one size.
            raise ChainError(
                "chain-outputs-ragged",
                "the optimized model gives outputs of other sizes than the original does",
                why=f"how much it returns depends on values that the chain changed\n{error.why}",
                hint="end the network before the step that chooses (NonZero, suppression), and do "
                "that step on the device; or --chain none",
            ) from error
        arrays = read_npz(str(answers))
    info, _ = device.ask(host, host.put(path), "device")
    return replace(
        contents,
        built=[arrays[tensor.name] for tensor in contents.outputs],
        sizes=sizes,
        build=info,
    )


def _at_size(
    contents: bundle.Contents, size: bundle.OtherSize, folder: Path, path: Path, host: Local,
    options: Sequence[str],
) -> list[np.ndarray]:  # fmt: skip
    """Return a draft's answers to the first reference sample at another size of an axis."""
    feed = {t.name: array[0] for t, array in zip(contents.inputs, contents.reference, strict=True)}
    sizes = {**bind_sizes(contents.inputs, feed), size.axis: size.size}
    fed, answers = folder / "resized.npz", folder / "answers.npz"
    # With an axis in front each array is one whole feed, whatever its batch.
    arrays = {name: a[None] for name, a in resized(contents.inputs, feed, sizes).items()}
    np.savez(fed, **arrays)  # type: ignore[arg-type]
    device.ask(host, host.put(path), "run", "--input", str(fed), "--output", str(answers), *options)
    outputs = read_npz(str(answers))
    return [outputs[tensor.name][0] for tensor in contents.outputs]


def _few(job: Job, quality: Mapping[str, Any]) -> Iterator[str]:
    """A warning where the evaluation set is too small for the rates that it is held to."""
    count, _ = evaluation_of(job.samples)
    shares = {gate: 1 - quality[gate] for gate in ("agreement", "metric_ratio") if gate in quality}
    if "max_drop" in quality:
        shares["max_drop"] = quality["max_drop"] / 100
    for gate, share in shares.items():
        if share > 0 and count * share < 1:
            yield (
                f"{count} evaluation samples are too few for the gate {gate}: "
                f"it takes {math.ceil(1 / share)} to tell this rate"
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
            target = job.request.target
            where = "the GPU" if target.engine != ONNXRUNTIME else target.arch
            stage.note(f"to be measured on {where}: python3 BUNDLE bench there")
            return None
        with files.temporary_folder() as folder:
            fp32 = folder / "original.onnx"
            fp32.write_bytes(job.original.model)
            found, _ = device.ask(
                host, host.put(path), "bench",
                "--length", job.request.latency, "--against", str(fp32),
            )  # fmt: skip
        stage.note(
            f"p50 {found['model']['p50']:.3f} ms, the original's fp32 graph "
            f"{found['original']['p50']:.3f} ms, in turns",
            *(f"disturbed: {reason}" for reason in found["disturbed"]),
        )
    if found["disturbed"]:
        ledger.warn(
            f"the latency was disturbed: {'; '.join(found['disturbed'])}; measure again on a quiet "
            "machine: edgepack bench BUNDLE --against ONNX"
        )
    if found["ratio"] < 1:
        ledger.warn(
            f"this bundle is slower than its fp32 original on this machine: p50 "
            f"{found['model']['p50']:.3f} ms against {found['original']['p50']:.3f} ms"
        )
    return found


def _summary(quality: Mapping[str, Any]) -> dict[str, Any]:
    return {key: quality[key] for key in ("on", "samples", "outputs", "metric", "reference")}


def _unsteady(verdict: Mapping[str, Any]) -> GateError:
    told: Sequence[str] = [
        describe_gate(gate)
        for question in ("quality", "fidelity")
        for gate in verdict[question]["gates"]
        if not gate["passed"]
    ]
    return GateError(
        "build-unsteady",
        "the same bundle answered differently twice on this machine",
        why="\n".join(told),
        hint="the hardware or the engine is not to be trusted; run it on another machine",
    )
