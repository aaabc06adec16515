"""What the passes are given: the graph before, and what every graph is held against."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack.request import Request
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.stages import gates
from edgepack.stages.original import Reference
from edgepack.stages.samples import SampleSets


@dataclass(frozen=True)
class Graph:
    """The model as a serialised ONNX, with what is known of it.

    Attributes:
        model: serialised.
        inputs: of the model.
        outputs: of the model, their kinds settled.
        integer_only: whether its arithmetic is integer from the first quantization to the last.
        profiles: shapes that the engine is built for, of inputs with a dynamic axis.
        returned: layers that a repair took back to float.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    integer_only: bool = False
    profiles: Profiles = field(default_factory=dict)
    returned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What every pass is given, the same for all.

    Attributes:
        request: what was asked for.
        source: the trained model before any pass.
        inputs: of the model.
        samples: calibration, training and evaluation.
        reference: the reference samples, and the original's answers to them.
        original: the original's graph: as it was exported, and simplified after that stage.
    """

    request: Request
    source: Source
    inputs: tuple[Tensor, ...]
    samples: SampleSets
    reference: Reference
    original: Graph

    @property
    def metric(self) -> str:
        """The task metric that quality is told in; "" for none. Raises as `gates.metric` does."""
        return gates.metric(self.request, self.original.outputs, self.reference.labels)

    @property
    def bounds(self) -> Mapping[str, Any]:
        """The gates that hold the quality. Raises as `gates.quality` does."""
        return gates.quality(self.request, self.original.outputs, self.reference.labels)


def parsed(model: bytes) -> Any:
    """A serialised model as an `onnx.ModelProto`."""
    import onnx

    return onnx.load_model_from_string(model)


def digest_of(model: bytes) -> str:
    """SHA-256 of a serialised model."""
    return hashlib.sha256(model).hexdigest()
