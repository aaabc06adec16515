"""Low rank: a layer becomes two smaller ones, r channels between them.

    Linear          k -> o         k -> r, r -> o
    convolution     c -> o, k x k  k x k convolution c -> r, 1 x 1 convolution r -> o

A k x k and a 1 x 1 convolution, rather than k x 1 and 1 x k ones: its r channels are the best r
directions of the layer's own outputs, so what is lost is known exactly; and kernels for int8 are
made for square windows and for 1 x 1.

options    what can be asked for
layers     which layers can be factorized, and why others cannot
moments    mean and second moments of what layers read or give, streamed
spectrum   the directions, and what each is worth
ranks      how many of them stay
split      the two layers in place of one
run        the pass
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.chain.factorize.options import FactorizeOptions
from edgepack.chain.module import Context, ModuleResult

__all__ = ["FactorizeOptions", "factorize", "replay"]


def factorize(module: Any, options: FactorizeOptions, context: Context) -> ModuleResult:
    """Put two layers of low rank in the place of one, where that is smaller.

    Raises:
        ChainError: factorize-layers, factorize-nothing, factorize-budget, factorize-not-finite.
    """
    from edgepack.chain.factorize.run import run

    return run(module, options, context)


def replay(module: Any, recipe: Mapping[str, Any], context: Context) -> Any:
    """The layers of low rank, weights aside."""
    from edgepack.chain.factorize.split import split_all

    return split_all(module, recipe["ranks"], recipe["bias"])
