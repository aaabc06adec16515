"""Low-rank factorization: replace a layer by two smaller ones with r channels between them.

    Linear          k -> o         k -> r, r -> o
    convolution     c -> o, k x k  k x k convolution c -> r, 1 x 1 convolution r -> o

A k x k followed by a 1 x 1 convolution, rather than k x 1 and 1 x k: the r channels are the best r
directions of the layer's own outputs, so the error is known exactly, and int8 kernels are optimized
for square and 1 x 1 windows.

factorize_module  the pass
options           the options of the pass
layers            search for layers that can be factorized
moments           streamed mean and second moments of layer inputs or outputs
spectrum          the directions and the energy of each
ranks             choice of the ranks
split             construction of the two layers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.passes.factorize.options import FactorizeOptions
from edgepack.passes.module import ModuleContext, ModuleResult, Recipe
from edgepack.passes.protocol import ModulePass

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Factorize", "FactorizeOptions", "factorize", "replay"]


def factorize(module: nn.Module, options: FactorizeOptions, context: ModuleContext) -> ModuleResult:
    """Replace layers by two layers of low rank each if that saves parameters.

    Raises:
        ChainError: factorize-layers, factorize-nothing, factorize-budget, factorize-not-finite.
    """
    from edgepack.passes.factorize.factorize_module import factorize_module

    return factorize_module(module, options, context)


def replay(module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
    """Rebuild the layers of low rank of a recipe, without their weights."""
    from edgepack.passes.factorize.split import split_all

    return split_all(module, recipe["ranks"], recipe["bias"])


class Factorize(ModulePass[FactorizeOptions]):
    """Replace layers by two layers of low rank."""

    name = FactorizeOptions.NAME
    options = FactorizeOptions

    def advice(self) -> str:
        """Suggest how to lose less quality."""
        return "train after factorizing (--chain factorize,distill), factorize less"

    def apply(
        self, module: nn.Module, options: FactorizeOptions, context: ModuleContext
    ) -> ModuleResult:
        """Return the changed network with its recipe."""
        return factorize(module, options, context)

    def replay(self, module: nn.Module, recipe: Recipe, context: ModuleContext) -> nn.Module:
        """Rebuild the structure of a recipe."""
        return replay(module, recipe, context)
