"""Interface of a task metric, which edgepack, a plug-in or the user defines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgepack.plugins import Plugin
from edgepack.runtime.tensor import Tensor


class Metric(Protocol):
    """Task metric: one number for the answers to a whole evaluation set."""

    @property
    def name(self) -> str:
        """Return the name for the report and the bundle."""

    @property
    def higher_is_better(self) -> bool:
        """Return False for an error, such as a mean absolute error."""

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the metric of a model's answers.

        Args:
            outputs: per output of the model, its answers with the samples along axis 0; an array
                of one array per sample (dtype object) if their sizes differ. Read-only.
            labels: of the samples, in the same form.
        """


class OutputMetric(Protocol):
    """Built-in metric that depends on the kinds of the outputs."""

    def bind(self, outputs: Sequence[Tensor]) -> Metric:
        """Return the metric for a model with these outputs, of which kind and axis are known."""


@dataclass(frozen=True)
class TaskMetric:
    """Metric that a build was asked for, with its origin.

    Attributes:
        metric: the metric.
        name: its name, for the report and the bundle.
        origin: origin of a metric that is not edgepack's own, for errors: "metrics.py:rmse".
        digest: SHA-256 of the code of such a metric, for the keys of cached results.
        plugin: the plug-in that defines it; None for none.
    """

    metric: Metric
    name: str
    origin: str = ""
    digest: str = ""
    plugin: Plugin | None = None
