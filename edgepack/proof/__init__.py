"""The proof: a bundle is written, judged through the loader that ships, and only then published."""

from edgepack.proof.job import Job
from edgepack.proof.prove import Outcome, missed, prove

__all__ = ["Job", "Outcome", "missed", "prove"]
