"""Interface of the passes on the torch module: their context and their result.

`apply(module, options, context)` may change its module, a copy, and returns a `ModuleResult`. The
recipe of the result records in JSON how the structure changed: remaining layers, removed channels,
ranks. `replay(module, recipe, context)` repeats that on another copy of the same module, except for
the weights: afterwards the parameters and buffers have the same names and shapes, and anything else
that the forward reads is equal.

The build stores the recipe and the state dict, never a pickled module, and always continues with
the replayed module, so that a cached build cannot differ from an uncached one. Right after the pass
the build checks that both give the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.metrics.postprocess import Postprocess
from edgepack.metrics.protocol import TaskMetric
from edgepack.passes.options import PassOptions
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from torch import nn


Recipe = Mapping[str, Any]
"""JSON values from which `replay` rebuilds the structure that a pass produced."""


@dataclass(frozen=True)
class ModuleResult(PassResult["nn.Module"]):
    """Result of a pass on the module.

    Attributes:
        model: the changed torch module, on the CPU.
        recipe: JSON values from which `replay` rebuilds its structure.
    """

    recipe: Recipe = field(default_factory=dict)


class Code(Protocol):
    """Access to the user's code by the names of `--arch`: "module:function", "file.py:function"."""

    def build(self, spec: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Return the torch module that a factory builds, in eval mode. Raises SourceError."""

    def function(self, spec: str) -> Callable[..., Any]:
        """Return the named function. Raises SourceError."""


@dataclass(frozen=True)
class ModuleContext:
    """Inputs of a pass on the module besides the module.

    Attributes:
        original: the trained network before any pass, in eval mode; it is the teacher and must not
            be changed. Like every module here it takes its inputs by position and returns a tensor
            or a tuple of tensors.
        inputs: name, type and shape of each input, in the order of the module's arguments.
        outputs: the same of each output, in order; kind is "scores" or "values".
        example: one feed, by input name.
        calibration: the calibration samples; None unless the options need them.
        training: the training samples; None unless the options need them.
        gates: bounds of the bundle's quality gates by name; empty unless the options need them.
        code: access to the user's functions that options name.
        work: folder for checkpoints; it survives an interrupted build and is deleted after the
            pass.
        progress: receives progress messages.
        later: the options of the later passes that the options need, by pass.
        metric: the primary task metric, if the build host computes it; a training that needs gates
            may score itself by it.
        postprocess: decodes the outputs for that metric; None for none.
    """

    original: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    example: Mapping[str, np.ndarray]
    calibration: Samples | None
    training: Samples | None
    gates: Mapping[str, float]
    code: Code
    work: Path
    progress: Progress
    later: Mapping[str, PassOptions] = field(default_factory=dict)
    metric: TaskMetric | None = None
    postprocess: Postprocess | None = None
