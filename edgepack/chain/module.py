"""What a pass on the torch module is given, and what it gives back.

`apply(module, options, context)` may change the module that it is given, a copy, and returns a
`ModuleResult`. Its recipe says in JSON how the structure was changed: which layers were left,
which channels were cut, which ranks were chosen. `replay(module, recipe, context)` does the same
to another copy of the module that `apply` was given, weights aside: the parameters and buffers
have the same names and shapes afterwards, and whatever else the forward reads is the same.

The build keeps the recipe and the state dict, never a pickled module, and goes on with the
replayed one, whether it was computed now or taken from the cache: what is cached and what is not
cannot differ. That both answer alike is checked right after the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from edgepack.chain.quantize import QuantizeOptions


@dataclass(frozen=True)
class ModuleResult(PassResult[Any]):
    """What a pass on the module returns.

    Attributes:
        model: the torch module, as it was changed, on the CPU.
        recipe: JSON values from which `replay` makes its structure again.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)


class Code(Protocol):
    """The user's own code, named as `--arch` names it: "module:function" or "file.py:function"."""

    def build(self, spec: str, arguments: Mapping[str, Any]) -> Any:
        """The torch module that a factory builds, in eval mode. Raises SourceError."""

    def function(self, spec: str) -> Callable[..., Any]:
        """A function. Raises SourceError."""


@dataclass(frozen=True)
class Context:
    """What a pass on the module has besides the module.

    Attributes:
        original: the trained network before any pass, in eval mode: the teacher. Not to be
            changed; it is called with its inputs by position, as is every module here, and returns
            a tensor or a tuple of tensors.
        inputs: name, type and shape of each input, in the order in which the module takes them.
        outputs: of each output, in order; kind is "scores" or "values".
        example: one feed, by input name.
        calibration: the calibration samples, where the pass's options say that it needs them.
        training: the training samples, likewise.
        gates: the quality gates that the bundle will be held to, by name, likewise.
        code: the user's functions that options name.
        work: a folder that survives a killed build, for checkpoints; gone once the pass is done.
        progress: told how far it is.
        quantize: the options of the `quantize` later in the chain, likewise.
    """

    original: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    example: Mapping[str, np.ndarray]
    calibration: Samples | None
    training: Samples | None
    gates: Mapping[str, float]
    code: Code
    work: Path
    progress: Progress
    quantize: QuantizeOptions | None = None
