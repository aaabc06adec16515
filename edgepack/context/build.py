"""Context of a build, passed to every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.cache import Cache
from edgepack.context import gates
from edgepack.context.graph import Graph
from edgepack.context.reference import Reference
from edgepack.context.samples import SampleSets
from edgepack.ledger import Ledger
from edgepack.metrics.protocol import TaskMetric
from edgepack.request import Request
from edgepack.runtime.parity.accuracy import TOP
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source


@dataclass(frozen=True)
class Context:
    """Context of every stage.

    Attributes:
        request: the user's request.
        cache: results of the stages of earlier builds.
        ledger: receives a record of every stage, and the warnings.
    """

    request: Request
    cache: Cache
    ledger: Ledger


@dataclass(frozen=True)
class BuildContext(Context):
    """Context of the passes and of the proof: the original model and its answers.

    Attributes:
        source: the trained model before any pass.
        inputs: of the model.
        samples: calibration, training and evaluation.
        reference: the reference samples, and the original's answers to them.
        original: the original's exported graph; the simplified one after that stage.
    """

    source: Source
    inputs: tuple[Tensor, ...]
    samples: SampleSets
    reference: Reference
    original: Graph

    @property
    def metric(self) -> str:
        """Primary task metric of quality; "" for none. Raises as `choose_metric` does."""
        return gates.choose_metric(self.request, self.original.outputs, self.reference.labels)

    @property
    def counted(self) -> str:
        """Metric that the loader counts itself; "" for none. Raises as `choose_metric` does."""
        return self.metric if self.metric in TOP else ""

    @property
    def bounds(self) -> Mapping[str, float]:
        """Gates of quality. Raises as `bound_quality` does."""
        return gates.bound_quality(self.request, self.original.outputs, self.reference.labels)

    @property
    def metric_key(self) -> object:
        """Key part of results that depend on the task metrics."""
        scores: list[list[object]] = []
        for score in self.reference.scores:
            task = score.task
            better = task.metric.higher_is_better
            scores.append([task.name, task.digest, better, task.against_original, score.value])
        postprocess = self.reference.postprocess
        return [self.metric, scores, postprocess.digest if postprocess and scores else ""]

    @property
    def primary(self) -> TaskMetric | None:
        """Primary task metric if the build host computes it; None if the loader does."""
        if self.request.metric in ("", *TOP) or not self.reference.scores:
            return None
        return self.reference.scores[0].task
