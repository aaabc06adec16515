"""Interface of a task metric, which edgepack, a plug-in or the user defines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from edgepack.plugins import Plugin

OUTPUTS, NUMBERS, RESULTS = "outputs", "numbers", "results"
"""Arguments of a metric if the answers are decoded by a postprocess: see `TaskMetric.takes`."""


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


class StreamedMetric(Protocol):
    """Metric in the form of torchmetrics: fed batch by batch, with tensors of torch."""

    def update(self, preds: object, target: object) -> object:
        """Add the answers and the labels of one batch."""

    def compute(self) -> object:
        """Return the metric of all batches."""

    def reset(self) -> object:
        """Forget all batches."""


MetricSource: TypeAlias = "str | Callable[..., object] | Metric | StreamedMetric"
"""Task metric as a user states it: a name, "file.py:function", a function, or an object."""


@dataclass(frozen=True)
class TaskMetric:
    """Metric that a build was asked for, with its origin.

    Attributes:
        metric: the metric.
        name: its name, for the report and the bundle.
        origin: origin of a metric that is not edgepack's own, for errors: "metrics.py:rmse".
        digest: SHA-256 of the code of such a metric, for the keys of cached results.
        plugin: the plug-in that defines it; None for none.
        against_original: True if it gets the original's answers in the place of labels.
        takes: OUTPUTS for the model's outputs; RESULTS for what the postprocess makes of them, one
            for each sample; NUMBERS for the results as a single output if they are numbers or
            arrays of one shape, and for the outputs otherwise.
    """

    metric: Metric
    name: str
    origin: str = ""
    digest: str = ""
    plugin: Plugin | None = None
    against_original: bool = False
    takes: str = OUTPUTS
