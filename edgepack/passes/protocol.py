"""Interfaces of a pass, of edgepack's own and of plug-ins.

A pass works in one of two domains:

module   on the torch module, before export (`ModulePass`)
graph    on the exported ONNX graph (`GraphPass`)

Its options are a frozen dataclass over `options.PassOptions`, which rejects invalid values in
`__post_init__`. For example, a pass that bounds every weight:

    @dataclass(frozen=True)
    class ClipOptions(PassOptions):
        limit: float = 1.0

    class Clip(GraphPass[ClipOptions]):
        name = "clip"
        options = ClipOptions

        def apply(self, model, samples, options, progress):
            ...
            return PassResult(clipped, True, ("Clipped 3 weights to a magnitude of 1.",))
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.passes.module import ModuleContext, ModuleResult, Recipe
from edgepack.passes.options import PassOptions

if TYPE_CHECKING:
    import onnx
    from torch import nn

Domain = Literal["module", "graph"]
Options = TypeVar("Options", bound=PassOptions)


class Pass(Protocol[Options]):
    """Members that passes of both domains have; the methods here are their defaults."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the pass in a chain, and of its stage in the ledger."""

    @property
    @abstractmethod
    def domain(self) -> Domain:
        """The torch module or the ONNX graph."""

    @property
    @abstractmethod
    def options(self) -> type[Options]:
        """Class of its options."""

    @property
    def table(self) -> str:
        """Name of the table of its options in profiles and manifests."""
        return self.name

    def precision(self, options: Options) -> str:
        """Name the precision that the pass gives to layers, such as "int8"; "" if it gives none."""
        return ""

    def advice(self) -> str:
        """Suggest how to lose less quality in this pass, as a clause; "" without a suggestion."""
        return ""


@runtime_checkable
class GraphPass(Pass[Options], Protocol[Options]):
    """Pass on the exported ONNX graph."""

    @property
    def domain(self) -> Domain:
        """The ONNX graph."""
        return "graph"

    @abstractmethod
    def apply(
        self,
        model: onnx.ModelProto,
        samples: Samples | None,
        options: Options,
        progress: Progress,
    ) -> PassResult[onnx.ModelProto]:
        """Return the changed model; the argument is not modified.

        Args:
            model: the graph after the passes before.
            samples: the calibration samples; None unless the options need them.
            options: of the pass.
            progress: receives progress messages.
        """


class Trials(Protocol):
    """Results of one pass on one model that differ in the layers that stay float."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes that the pass converts."""

    def model_with(self, floats: Collection[str]) -> onnx.ModelProto:
        """Return the model with these layers in float; not all of `names`."""

    def result(self, floats: Collection[str] = ()) -> PassResult[onnx.ModelProto]:
        """Return the same model with its figures."""


@runtime_checkable
class PartialPass(GraphPass[Options], Protocol[Options]):
    """Graph pass that can leave layers out.

    If its options say that it `repairs`, and a gate fails, `stages.repair` returns layers to float
    until the gates pass.
    """

    @abstractmethod
    def partial(
        self,
        model: onnx.ModelProto,
        samples: Samples | None,
        options: Options,
        progress: Progress,
    ) -> Trials:
        """Return the results that the pass can choose from; the arguments are those of `apply`."""


@runtime_checkable
class ModulePass(Pass[Options], Protocol[Options]):
    """Pass on the torch module; see `passes.module`."""

    @property
    def domain(self) -> Domain:
        """The torch module."""
        return "module"

    @abstractmethod
    def apply(self, module: nn.Module, options: Options, context: ModuleContext) -> ModuleResult:
        """Change a copy of the network; return it with the recipe of its structure."""

    @abstractmethod
    def replay(self, module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
        """Rebuild the structure of a recipe on another copy, without the weights."""


# Passes whose options are of no interest to their caller.
AnyPass = Pass[Any]
AnyGraphPass = GraphPass[Any]
AnyModulePass = ModulePass[Any]
