"""Proof of a bundle: write it, judge it through the shipped loader, and only then publish it.

Nothing is judged in memory. A draft runs isolated on this machine and gives the answers that every
device is compared with; the whole evaluation set runs through the loader; the finished file,
report included, is verified once more as the bytes that will ship.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgepack import bundle, device, engine, files, report, signing
from edgepack.context import Context
from edgepack.context.gates import METRIC_GATES
from edgepack.device import Local
from edgepack.errors import ChainError, EdgepackError, GateError
from edgepack.host import may_saturate
from edgepack.ledger import Record
from edgepack.passes import Step
from edgepack.proof.account import make_report
from edgepack.proof.decision import decide_build
from edgepack.proof.emulate import emulate
from edgepack.proof.evaluation import evaluate, reproduces
from edgepack.proof.existing import check_content
from edgepack.proof.job import Job, describe_lowered_gates, draft, keep_variants, reject_path
from edgepack.proof.variants import check_variants, verify_again
from edgepack.report import describe_gate
from edgepack.report.documents import Report
from edgepack.report.findings import find_first_loss
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.commands.run import read_npz
from edgepack.runtime.documents import Comparison, Outputs, Question, RecordedQuality, Verdict
from edgepack.runtime.parity.sizes import LARGEST_STACK, feed_at_size
from edgepack.runtime.parity.verdict import FAIL


@dataclass(frozen=True)
class Outcome:
    """Result of a build.

    Attributes:
        path: path of the bundle; of the rejected bundle if a gate was missed.
        report: the report, as JSON values; it has the verdict.
        accepted: true unless a gate was missed.
    """

    path: Path
    report: Report
    accepted: bool


class RejectedBundleError(GateError):
    """Error of a build whose bundle missed gates.

    Attributes:
        outcome: the rejected bundle and its report.
    """

    outcome: Outcome


def prove(job: Job, host: Local) -> Outcome:
    """Write, judge and publish a bundle; on a missed gate, write it as rejected.

    Raises:
        HostError: if the output cannot be written.
        EdgepackError: any error of the loader.
    """
    output, context = job.request.output, job.context
    ledger, samples = context.ledger, context.samples
    with files.temporary_beside(output) as temporary:
        # 1. A draft with the model, the reference samples and the answers of this machine.
        contents = draft(job)
        ledger.warn(
            *describe_lowered_gates(job.request),
            *_warn_of_few_samples(job, contents.gates["quality"]),
        )
        with ledger.stage("bundle") as stage:
            contents = _add_answers(contents, temporary, host, job.options)
            bundle.write(temporary, contents)
            stage.set(bytes=temporary.stat().st_size)
            stage.note(f"model, loader and {len(contents.reference[0])} reference samples")
        # 2. The verdict on the whole evaluation set. It is not in the bundle, so the loader reads
        # its samples from a pipe.
        with ledger.stage("verify", samples.evaluation_count) as stage:
            verdict = evaluate(job, temporary, host, stage.progress, job.options)
            stage.note(f"{verdict['quality']['samples']:,} samples through the shipped loader")
        # 3. The target's CPUs, whose int8 arithmetic may differ from this machine's.
        emulated = emulate(context, temporary, verdict, job.graph.integer_only, job.options)
        _apply_emulated(job, verdict, emulated)
        # Other engines for the same ONNX: one that misses a gate somewhere does not ship.
        checked = check_variants(job, contents.variants, temporary, host, list(emulated))
        if not all(entry.passed for entry in checked):
            passed = [entry.name for entry in checked if entry.passed]
            contents = keep_variants(job, contents, passed)
            bundle.write(temporary, contents)
        latency = _measure_latency(job, temporary, host)
        decision = decide_build(job, verdict, emulated)
        contents = replace(
            contents,
            quality=_summarize(verdict["quality"], decision.accepted),
            # Not part of the content digest: it depends on the emulators of this host.
            build={**contents.build, **decision.to_json()},
            wheels=job.wheels.select(contents.variants),
        )
        # 4. The report. The content digest leaves the report out, so that the report can state it.
        document = make_report(job, verdict, emulated, latency, host, decision)
        if checked:
            document["variants"] = [entry.to_json() for entry in checked]
        document["bundle"]["content_digest"] = bundle.write(temporary, contents)
        report.validate(document)
        _write_with_report(temporary, contents, document)
        if decision.accepted:
            check_content(job.request, document["bundle"]["content_digest"])
        # 5. The finished file once more: the bytes that ship are the bytes that passed.
        again = verify_again(job, contents.variants, temporary, host)
        # A signature states that the bundle may be used, so a rejected one is not signed.
        path, key = output, job.request.sign
        if not decision.accepted:
            path, key = reject_path(output), None
        if decision.accepted and again["verdict"] == FAIL:
            raise _make_unsteady_error(again)
        signature = signing.sign(temporary, key) if key else b""
        document["bundle"]["sha256"] = bundle.publish(temporary, path, signature)
    if key:
        document["bundle"]["signed"] = signing.fingerprint(key)
    document["bundle"]["bytes"] = path.stat().st_size
    return Outcome(path, document, decision.accepted)


def _write_with_report(path: Path, contents: bundle.Contents, document: Report) -> None:
    """Write a bundle with its report, which states the size of the file that it is in.

    The size depends on the report by the digits of itself alone, so the second attempt mostly
    states its own; a report that none fits does not state it.
    """
    attempts = 4
    for attempt in range(attempts):
        if attempt == attempts - 1:
            document["bundle"]["bytes"] = None
        pages = {
            "report.html": report.render_html(document).encode(),
            "report.json": bundle.encode_compact(document),
        }
        bundle.write(path, replace(contents, report=pages))
        size = path.stat().st_size
        if document["bundle"]["bytes"] == size:
            return
        document["bundle"]["bytes"] = size


# Stages before the passes.
_EXPORTED = ("simplify", "export")


def make_gate_error(outcome: Outcome, context: Context) -> GateError:
    """Return the error of a bundle that missed gates, with the stage that lost quality."""
    ledger, chain = context.ledger, context.request.chain
    reasons = describe_misses(outcome.report)
    hints = [f"the rejected bundle, with its report, is {outcome.path}"]
    if not outcome.report["quality"]["passed"]:
        lost = _find_lost_stage(outcome, context)
        if lost is not None:
            reasons.append(_describe_loss(lost))
        # Its notes say which layers it tried, and why returning them to float was not enough.
        for record in ledger.records:
            if record.stage == "repair":
                reasons += record.notes
        hints.append(_suggest_remedy(lost, chain))
    # Two products of full-range int8 can exceed the int16 sums of such CPUs.
    if _may_saturate(outcome.report, chain):
        hints.append(
            "full-range weights saturate on CPUs without VNNI; pair-safe weights give the same "
            "bits everywhere: --chain quantize:range=pair-safe"
        )
    error = RejectedBundleError(
        "gate-missed",
        "the bundle missed its gates; it was not written to the output path",
        why="\n".join(reasons),
        hint="\n".join(hints),
    )
    error.outcome = outcome
    return error


def _find_lost_stage(outcome: Outcome, context: Context) -> Record | None:
    """Return the pass that lost the gates, else the first stage that lost SNR."""
    losing_pass = context.ledger.find_losing_pass()
    if losing_pass is not None:
        return losing_pass
    loss = find_first_loss(outcome.report["ledger"])
    if loss is None:
        return None
    return context.ledger.records[loss.position]


def _describe_loss(lost: Record) -> str:
    """Return the stage since which gates are missed, with the SNR after it."""
    parity = _format_parity(lost.parity)
    if lost.stage in _EXPORTED:
        # At 134 dB nothing has dropped: the gate asks for more than the original reaches.
        return f"missed before any pass, since the stage {lost.stage!r} ({parity})"
    return f"quality first dropped in the stage {lost.stage!r} ({parity})"


def describe_misses(document: Report | Verdict) -> list[str]:
    """Return a line for every missed gate: "quality: SNR of logits: 9.6 dB (≥ 19.0 dB)"."""
    lines = []
    questions: dict[str, Question | None] = {
        # Bundles that take arrays alone have no such question.
        "preprocessing": document.get("preprocessing"),
        "quality": document["quality"],
        "fidelity": document["fidelity"],
    }
    for name, question in questions.items():
        if question is None:
            continue
        label = name
        if "device" in question:
            label += f" on {question['device']}"
        for gate in question["gates"]:
            if not gate["passed"]:
                lines.append(f"{label}: {describe_gate(gate)}")
    return lines


def _suggest_remedy(lost: Record | None, chain: Sequence[Step]) -> str:
    """Suggest how to recover the quality that a stage lost."""
    stage = ""
    if lost is not None:
        stage = lost.stage
    if stage in _EXPORTED:
        return "the exported original misses this gate already, so no chain can meet it: lower it"
    remedy = ""
    for step in chain:
        if step.name != stage:
            continue
        remedy = step.definition.advice()
        if step.options.get("repair") is False:
            remedy = f"leave repair on, which returns the costly layers to float; or {remedy}"
    remedy = remedy or "use more or better calibration samples, use another chain"
    return f"{remedy}, or lower the gate in the manifest"


def _may_saturate(document: Report, chain: Sequence[Step]) -> bool:
    """Return true if an emulated x86 decided the fidelity of a model with full-range weights.

    Without VNNI an x86 CPU adds two int8 products in 16 bits: 127 * 255 * 2 is 64,770, over the
    limit of 32,767.
    """
    # Only an emulated CPU that decided is named in `fidelity`.
    native = document["device"]["arch"] == "x86_64" and not document["stands_in"]
    return native and may_saturate(chain) and "device" in document["fidelity"]


def _apply_emulated(job: Job, verdict: Verdict, emulated: Mapping[str, Question]) -> None:
    """Replace this host's fidelity by that of the deciding emulated CPU.

    The first CPU that missed decides; if none missed, the first CPU, but only if this host stands
    in for the target.
    """
    # Of Haswell (passed) and Skylake-Client (missed), Skylake-Client decides.
    missed = [cpu for cpu, answer in emulated.items() if not answer["passed"]]
    deciding = missed
    if not missed and job.stands_in:
        deciding = list(emulated)
    if deciding:
        cpu = deciding[0]
        fidelity = emulated[cpu].copy()
        fidelity["device"] = f"{cpu}, emulated"
        verdict["fidelity"] = fidelity
        verdict["passed"] = verdict["quality"]["passed"] and reproduces(verdict)


def _format_parity(parity: Outputs | None) -> str:
    """Return the SNR of every output after a stage: "logits: 9.4 dB SNR"."""
    parts = []
    for output, metrics in (parity or {}).items():
        snr = metrics["snr_db"]
        if snr is None:
            parts.append(f"{output}: exact")
        else:
            parts.append(f"{output}: {snr:.1f} dB SNR")
    return ", ".join(parts)


def _add_answers(
    contents: bundle.Contents, path: Path, host: Local, options: Sequence[str]
) -> bundle.Contents:
    """Run a draft on this machine, and add its answers as the build host's."""
    bundle.write(path, contents)
    with files.temporary_folder() as folder:
        answers = folder / "built.npz"
        sizes = []
        try:
            device.ask(host, host.put(path), "run", "--output", str(answers), *options)
            for size in contents.sizes:
                built = _run_at_size(contents, size, folder, path, host, options)
                sizes.append(replace(size, built=built))
        except EdgepackError as error:
            if error.code != "output-ragged":
                raise
            # The original's outputs have one size over the reference samples, by their selection.
            raise ChainError(
                "chain-outputs-ragged",
                "the optimized model's outputs differ in size from the original's",
                why=f"their size depends on values that the chain changed\n{error.why}",
                hint="end the network before the operator that selects (NonZero, "
                "NonMaxSuppression) and run it on the device; or --chain none",
            ) from error
        arrays = read_npz(str(answers))
    info, _ = device.ask(host, host.put(path), "device")
    return replace(
        contents,
        built=[arrays[tensor.name] for tensor in contents.outputs],
        sizes=sizes,
        build=info,
    )


def _run_at_size(
    contents: bundle.Contents, size: bundle.OtherSize, folder: Path, path: Path, host: Local,
    options: Sequence[str],
) -> list[np.ndarray]:  # fmt: skip
    """Return a draft's answers to reference samples at another size of an axis."""
    feed = feed_at_size(contents.inputs, _list_feeds(contents), size.axis, size.size)
    inputs, answers = folder / "resized.npz", folder / "answers.npz"
    # `run` takes samples along axis 0: with an axis in front, each array is one feed of any batch.
    arrays = {name: array[None] for name, array in feed.items()}
    np.savez(inputs, **arrays)  # type: ignore[arg-type]
    device.ask(
        host, host.put(path), "run", "--input", str(inputs), "--output", str(answers), *options
    )
    outputs = read_npz(str(answers))
    return [outputs[tensor.name][0] for tensor in contents.outputs]


def _list_feeds(contents: bundle.Contents) -> list[dict[str, np.ndarray]]:
    """Return the first reference samples, one feed by input name for each."""
    # Arrays x (32, 3, 8, 8) and mask (32, 8) become feeds of x (3, 8, 8) and mask (8,).
    names = [tensor.name for tensor in contents.inputs]
    feeds = []
    for arrays in zip(*contents.reference, strict=True):
        feeds.append(dict(zip(names, arrays, strict=True)))
        if len(feeds) == LARGEST_STACK:
            break
    return feeds


def _warn_of_few_samples(job: Job, quality: Mapping[str, float]) -> Iterator[str]:
    """Yield a warning for every gate whose rate the evaluation set is too small to resolve.

    40 samples resolve a rate of 1 in 40, so that a gate of 99 % allows no miss; it takes 100.
    """
    # Only shares of samples have a smallest step.
    if not job.context.counted:
        quality = {gate: bound for gate, bound in quality.items() if gate not in METRIC_GATES}
    count = job.context.samples.evaluation_count
    shares = {}
    for gate in ("agreement", "metric_ratio"):
        if gate in quality:
            shares[gate] = 1 - quality[gate]
    if "max_drop" in quality:
        shares["max_drop"] = quality["max_drop"] / 100
    for gate, share in shares.items():
        if share > 0 and count * share < 1:
            yield (
                f"{count} evaluation samples are too few for the gate {gate}: "
                f"it needs at least {math.ceil(1 / share)}"
            )


def _measure_latency(job: Job, path: Path, host: Local) -> Comparison | None:
    """Measure the latency in turns with the original's fp32 graph; None if it is skipped."""
    ledger = job.context.ledger
    with ledger.stage("latency") as stage:
        if job.request.latency == "none":
            stage.set(status="skipped")
            stage.note("--latency none")
            return None
        # The latency of another processor than the target's means nothing.
        if job.stands_in:
            stage.set(status="skipped")
            target = job.request.target
            device_name = target.arch
            if engine.find_runtime(target) != ONNXRUNTIME:
                device_name = "the GPU"
            stage.note(f"measure it on {device_name}: python3 BUNDLE bench")
            return None
        with files.temporary_folder() as folder:
            fp32 = folder / "original.onnx"
            fp32.write_bytes(job.context.original.model)
            length = ("--length", job.request.latency)
            result = device.compare_latency(host, host.put(path), str(fp32), *length)
        # The same graph has the same latency, whatever the clock says.
        if job.graph.model == job.context.original.model and not job.graph.variants:
            result = {**result, "original": result["model"], "ratio": 1.0}
        about = ""
        if result["disturbed"]:
            about = "about "
        stage.note(
            f"p50 {about}{result['model']['p50']:.3f} ms; fp32 graph of the original "
            f"{about}{result['original']['p50']:.3f} ms, measured in turns"
        )
        for reason in result["disturbed"]:
            stage.note(f"disturbed: {reason}")
    if result["disturbed"]:
        ledger.warn(
            f"latency disturbed: {'; '.join(result['disturbed'])}; measure again on a quiet "
            "machine: edgepack bench BUNDLE --against ONNX"
        )
    if result["ratio"] < 1:
        ledger.warn(
            f"the bundle is slower than the fp32 original on this machine: p50 {about}"
            f"{result['model']['p50']:.3f} ms against {result['original']['p50']:.3f} ms"
        )
    return result


def _summarize(quality: Question, accepted: bool) -> RecordedQuality:
    recorded: RecordedQuality = {
        "on": quality["on"],
        "samples": quality["samples"],
        "outputs": quality["outputs"],
        "metric": quality["metric"],
        "reference": quality["reference"],
        "passed": accepted,
    }
    if "further_metrics" in quality:
        recorded["further_metrics"] = quality["further_metrics"]
    return recorded


def _make_unsteady_error(verdict: Verdict) -> GateError:
    return GateError(
        "build-unsteady",
        "the same bundle gave different answers in two runs on this machine",
        why="\n".join(describe_misses(verdict)),
        hint="the hardware or the engine is unreliable; build on another machine",
    )
