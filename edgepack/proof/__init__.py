"""Verification of a build: write the bundle, judge it through the shipped loader, publish it."""

from edgepack.proof.decision import describe_doubts
from edgepack.proof.emulate import require_emulators
from edgepack.proof.existing import check_existing, check_provenance
from edgepack.proof.job import Job
from edgepack.proof.prove import Outcome, RejectedBundleError, make_gate_error, prove

__all__ = [
    "Job",
    "Outcome",
    "RejectedBundleError",
    "check_existing",
    "check_provenance",
    "describe_doubts",
    "make_gate_error",
    "prove",
    "require_emulators",
]
