"""Samples of a build, by their role."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.data.lint import LintReport
from edgepack.data.samples import Samples


@dataclass(frozen=True)
class SampleSets:
    """Samples for calibration, training and evaluation.

    Attributes:
        calibration: None if the chain does not use any, or has no need of the missing ones.
        evaluation: samples that quality is judged on.
        lint: counts, digests and warnings of all samples.
        proven: False for random samples.
        training: None if the chain does not train.
    """

    calibration: Samples | None
    evaluation: Samples
    lint: LintReport
    proven: bool
    training: Samples | None = None

    @property
    def evaluation_count(self) -> int:
        """Number of samples that quality is judged on."""
        return self.lint.counts[self._judged_role]

    @property
    def evaluation_digest(self) -> str:
        """SHA-256 of the samples that quality is judged on."""
        return self.lint.digests[self._judged_role]

    @property
    def _judged_role(self) -> str:
        # Calibration samples also judge the quality if there are no others.
        if "evaluation" in self.lint.counts:
            return "evaluation"
        return "calibration"
