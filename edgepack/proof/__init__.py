"""Verification of a build: write the bundle, judge it through the shipped loader, publish it."""

from edgepack.proof.job import Job
from edgepack.proof.prove import Outcome, make_gate_error, prove

__all__ = ["Job", "Outcome", "make_gate_error", "prove"]
