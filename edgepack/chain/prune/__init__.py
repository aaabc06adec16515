"""Pruning: channels, filters and attention heads that matter least go; or single weights become 0.

structured    whole channels go: the network is smaller and faster everywhere
pattern       two weights of every four become 0: faster where the device has a kernel for it
unstructured  single weights become 0: no file is smaller for it and no kernel of ours faster

options     what can be asked for
graph       which channels of which layers go together (torch-pruning's dependency graph)
follow      its groups, followed to their end
cut         the slices of layers that go, and how they are taken out
trial       whether a group of channels can really go: tried out, on the network itself
importance  what the network loses with a channel
search      which channels go, until the budget is met
structured  all of that
zeros       single weights
run         the pass
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.chain.module import Context, ModuleResult
from edgepack.chain.prune.options import PruneOptions

__all__ = ["PruneOptions", "prune", "replay"]


def prune(module: Any, options: PruneOptions, context: Context) -> ModuleResult:
    """Take out channels, and make weights zero, as the options say.

    Raises:
        ChainError: prune-layers, prune-nothing, prune-budget, prune-graph, prune-labels.
        HostError: package-missing, where torch-pruning is not installed and channels shall go.
    """
    from edgepack.chain.prune.run import run

    return run(module, options, context)


def replay(module: Any, recipe: Mapping[str, Any], context: Context) -> Any:
    """The same channels taken out; zeros are in the weights."""
    from edgepack.chain.prune.cut import Cut, cut

    cut(module, Cut.from_json(recipe))
    return module
