"""Inputs of the passes: the graph to change, and the context shared by all passes."""

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
    """Model as serialised ONNX, with its inputs and outputs.

    Attributes:
        model: serialised.
        inputs: of the model.
        outputs: of the model, with their kinds.
        integer_only: True if its arithmetic is integer from the first quantization to the last.
        profiles: shapes of inputs with a dynamic axis, for building the engine.
        returned: layers returned to float by a repair.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    integer_only: bool = False
    profiles: Profiles = field(default_factory=dict)
    returned: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildContext:
    """Context of a build, the same for all passes.

    Attributes:
        request: the build's options.
        source: the trained model before any pass.
        inputs: of the model.
        samples: calibration, training and evaluation.
        reference: the reference samples, and the original's answers to them.
        original: the original's exported graph; the simplified one after that stage.
    """

    request: Request
    source: Source
    inputs: tuple[Tensor, ...]
    samples: SampleSets
    reference: Reference
    original: Graph

    @property
    def metric(self) -> str:
        """Task metric of quality; "" for none. Raises as `gates.choose_metric` does."""
        return gates.choose_metric(self.request, self.original.outputs, self.reference.labels)

    @property
    def bounds(self) -> Mapping[str, Any]:
        """Gates of quality. Raises as `gates.bound_quality` does."""
        return gates.bound_quality(self.request, self.original.outputs, self.reference.labels)


def parse_model(model: bytes) -> Any:
    """Parse a serialised model into an `onnx.ModelProto`."""
    import onnx

    return onnx.load_model_from_string(model)


def digest_model(model: bytes) -> str:
    """Return the SHA-256 of a serialised model."""
    return hashlib.sha256(model).hexdigest()
