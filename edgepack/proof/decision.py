"""Verdict of a build: PASS, FAIL, or UNVERIFIED with the reasons."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack import engine
from edgepack.device import suggest_emulation
from edgepack.proof.job import Job, list_variants
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.device.machine import describe
from edgepack.runtime.documents import Question, Reason, Verdict
from edgepack.runtime.parity.verdict import FAIL, NOT_ON_TARGET, RANDOM, RANDOM_TEXT, decide
from edgepack.spec.target import Target


@dataclass(frozen=True)
class Decision:
    """Verdict of a build.

    Attributes:
        verdict: PASS, FAIL or UNVERIFIED.
        reasons: missed gates, then what was not verified; empty for PASS.
    """

    verdict: str
    reasons: Sequence[Reason]

    @property
    def accepted(self) -> bool:
        """True unless a gate was missed: the bundle is written to the output path."""
        return self.verdict != FAIL

    def to_json(self) -> dict[str, object]:
        """Return the entry of the index, which `info` shows."""
        return {"verdict": self.verdict, "reasons": [reason["text"] for reason in self.reasons]}


def decide_build(job: Job, verdict: Verdict, emulated: Mapping[str, Question]) -> Decision:
    """Return the verdict of a build.

    Args:
        job: the job.
        verdict: the loader's verdict on the evaluation set, on the deciding device.
        emulated: the fidelity on the target's emulated CPUs.
    """
    doubts: list[Reason] = []
    if not job.context.samples.proven:
        doubts.append({"code": RANDOM, "text": RANDOM_TEXT})
    # A build for arm on x86-64 without qemu; a build for a Jetson on any host.
    target = job.request.target
    if text := _describe_absent_target(target, job.stands_in, emulated):
        remedy = suggest_verification(target, shlex.quote(job.request.output.name))
        doubts.append({"code": NOT_ON_TARGET, "text": text, "remedy": remedy})
    return Decision(
        *decide([verdict.get("preprocessing"), verdict["quality"], verdict["fidelity"]], doubts)
    )


def _describe_absent_target(
    target: Target, stands_in: object, emulated: Mapping[str, Question]
) -> str:
    """Return what of the target never ran; "" if this host or an emulator ran it.

    An emulated CPU runs the fallback of a bundle for a GPU, and no GPU is emulated.
    """
    host = describe()["arch"]
    if engine.find_runtime(target) != ONNXRUNTIME:
        return f"never run on a GPU: the answers are those of this host's CPU ({host})"
    if not stands_in or emulated:
        return ""
    return f"never run on {target.arch}: the answers are those of this {host} host"


def suggest_verification(target: Target, bundle: str) -> str:
    """Return the command that verifies a bundle on its target, emulated where that is possible.

    Args:
        target: of the bundle.
        bundle: its path, quoted for a shell.
    """
    variant = list_variants(target)[0]
    verify = f"python3 {bundle} verify"
    if variant.engine == ONNXRUNTIME:
        emulate = ""
        if target.emulate:
            emulate = suggest_emulation(bundle, target.arch, target.emulate)
        return emulate or verify
    # By its name: a device without a working GPU would run the fallback instead.
    verify += f" --variant {variant.name}"
    if variant.unfinished:
        return f"python3 {bundle} finish && {verify}"
    return verify


def describe_doubts(reasons: Sequence[Reason], target: Target, bundle: str, rebuild: str) -> str:
    """Return in one line why a build is UNVERIFIED, and the command that changes that.

    Args:
        reasons: of the verdict.
        target: of the bundle.
        bundle: its path, quoted for a shell.
        rebuild: command that builds it on real samples.
    """
    texts = "; ".join(reason["text"] for reason in reasons)
    # The command for the first reason that can be removed: real samples come before a device.
    codes = {reason["code"] for reason in reasons}
    if RANDOM in codes:
        return f"{texts}; for PASS: {rebuild}"
    if NOT_ON_TARGET in codes:
        command = suggest_verification(target, bundle)
        suffix = ""
        if command.startswith("python3"):
            suffix = ", on the device"
        return f"{texts}; for PASS: {command}{suffix}"
    return f"{texts}; for PASS: state a gate under [gates.quality] in the manifest"
