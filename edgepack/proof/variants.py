"""Proof of the variants of a bundle other than the one whose answers it stores.

Each runs the whole evaluation set through the loader and is held to the gates of quality, and on
this host and the emulated CPUs to its own gates of fidelity. A device that lacks one of the
engines runs the next variant, so that one that misses a gate is left out, and the build goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack import device
from edgepack.device import Local
from edgepack.errors import EdgepackError
from edgepack.proof.emulate import emulate_variant
from edgepack.proof.evaluation import evaluate
from edgepack.proof.job import Job, find_answering
from edgepack.report import describe_gate
from edgepack.report.findings import describe_variant
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.documents import Question, Verdict
from edgepack.runtime.parity.verdict import FAIL

if TYPE_CHECKING:
    from edgepack.report.documents import VariantSection

# Errors of a variant after which the loader does not run the next one.
_FATAL = ("loader-died",)


@dataclass(frozen=True)
class Checked:
    """Result of the checks of one variant.

    Attributes:
        variant: the variant.
        verdict: on the evaluation set, on this host; None if it does not run here.
        emulated: its fidelity by emulated CPU.
        notes: CPUs on which it does not run, in sentences.
        misses: reasons not to ship it; empty if it ships.
    """

    variant: Variant
    verdict: Verdict | None
    emulated: Mapping[str, Question] = field(default_factory=dict)
    notes: Sequence[str] = ()
    misses: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.variant.name

    @property
    def passed(self) -> bool:
        """True if the variant ships."""
        return not self.misses

    def to_json(self) -> VariantSection:
        """Return the entry of the report."""
        section: VariantSection = {
            "name": self.name,
            "engine": self.variant.engine,
            "settings": self.variant.settings.to_json(),
            "passed": self.passed,
            "misses": list(self.misses),
            "notes": list(self.notes),
            "emulated": dict(self.emulated),
        }
        if self.verdict is not None and self.verdict["fidelity"] is not None:
            section["quality"] = self.verdict["quality"].copy()
            section["quality"].pop("reference", None)
            section["fidelity"] = self.verdict["fidelity"]
        return section

    def describe(self) -> str:
        """Return the result in one line."""
        return f"{self.name}: {describe_variant(self.to_json())}"


def check_variants(
    job: Job, variants: Sequence[Variant], path: Path, host: Local, cpus: Sequence[str]
) -> list[Checked]:
    """Check every variant but the one that gave the bundle's answers, and warn of those left out.

    Args:
        job: the job.
        variants: of the draft, with their gates of fidelity.
        path: the draft, with its answers.
        host: the device that runs it.
        cpus: names of the emulated CPUs; empty if none was emulated.
    """
    others = list(variants)
    others.remove(find_answering(variants))
    # The variants of a GPU run on the device alone.
    if job.stands_in or not others:
        return []
    ledger, results = job.context.ledger, []
    count = len(others) * job.context.samples.evaluation_count
    with ledger.stage("variants", count) as stage:
        for variant in others:
            result = _check(job, variant, path, host, cpus)
            stage.note(result.describe())
            results.append(result)
    for result in results:
        if not result.passed:
            ledger.warn(result.describe())
    return results


def _check(job: Job, variant: Variant, path: Path, host: Local, cpus: Sequence[str]) -> Checked:
    options = ("--variant", variant.name)
    try:
        verdict = evaluate(job, path, host, job.context.ledger.progress, options)
    except EdgepackError as error:
        return Checked(variant, None, misses=[f"{error.what}: {error.why}"])
    misses = [f"{miss} on this host" for miss in _list_misses(verdict)]
    emulated: dict[str, Question] = {}
    notes = []
    for cpu in () if misses else cpus:
        try:
            emulated.update(emulate_variant([cpu], path, verdict, variant.name))
        except EdgepackError as error:
            # An engine that does not start there leaves the device to the next variant.
            reason = f"it does not run on {cpu}: {error.what}"
            if error.code in _FATAL:
                misses.append(reason)
            else:
                notes.append(reason)
            continue
        if not emulated[cpu]["passed"]:
            misses += [f"{miss} on {cpu}, emulated" for miss in _list_missed(emulated[cpu])]
    return Checked(variant, verdict, emulated, notes, misses)


def _list_misses(verdict: Verdict) -> list[str]:
    lines = []
    for question in (verdict["preprocessing"], verdict["quality"], verdict["fidelity"]):
        if question is not None:
            lines += _list_missed(question)
    return lines


def _list_missed(question: Question) -> list[str]:
    return [describe_gate(gate) for gate in question["gates"] if not gate["passed"]]


def verify_again(job: Job, variants: Sequence[Variant], path: Path, host: Local) -> Verdict:
    """Verify every variant of a finished file; return the first verdict that is FAIL, or the last.

    Args:
        job: the job.
        variants: of the file.
        path: the file.
        host: the device that runs it.
    """
    if job.stands_in:
        return device.verify_bundle(host, host.put(path), *job.stands_in)
    for variant in variants:
        verdict = device.verify_bundle(host, host.put(path), "--variant", variant.name)
        if verdict["verdict"] == FAIL:
            break
    return verdict
