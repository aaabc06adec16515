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
from edgepack.request import Request
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
        """Task metric of quality; "" for none. Raises as `choose_metric` does."""
        return gates.choose_metric(self.request, self.original.outputs, self.reference.labels)

    @property
    def bounds(self) -> Mapping[str, float]:
        """Gates of quality. Raises as `bound_quality` does."""
        return gates.bound_quality(self.request, self.original.outputs, self.reference.labels)
