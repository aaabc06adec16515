"""The model as a graph, between two passes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.documents import TensorDocument
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from edgepack.passes.protocol import Trials


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
        variants: ways to run it on the target's CPU, best first; empty for the profile's engine.
        form: precision that an auction chose, such as "fp32"; "" for that of the chain.
        before: the graph before the pass that made this one; None for the first.
        trials: creates other results of that pass; None if it has none.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    integer_only: bool = False
    profiles: Profiles = field(default_factory=dict)
    returned: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    form: str = ""
    before: Graph | None = field(default=None, compare=False, repr=False)
    trials: Callable[[], Trials] | None = field(default=None, compare=False, repr=False)

    @property
    def root(self) -> Graph:
        """The graph before the first pass; itself if no pass made it."""
        root = self
        while root.before is not None:
            root = root.before
        return root


def describe_tensors(tensors: Iterable[Tensor]) -> list[TensorDocument]:
    """Return inputs or outputs as JSON values, for the keys of the cache."""
    # All of their properties count: an axis with another name gives another graph.
    return [tensor.to_json() for tensor in tensors]


def describe_shapes(feed: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Return the shape of every array of a feed, for the keys of the cache."""
    return {name: list(array.shape) for name, array in feed.items()}


def parse_model(model: bytes) -> ModelProto:
    """Parse a serialised model."""
    # Here, since onnx takes long to import and `--help` does not need it.
    import onnx

    return onnx.load_model_from_string(model)


def digest_model(model: bytes) -> str:
    """Return the SHA-256 of a serialised model."""
    # Of the bytes, not of the parsed model: what is measured is what ships.
    return hashlib.sha256(model).hexdigest()
