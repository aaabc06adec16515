"""Optimization chain: an ordered list of passes, each from a model to a `PassResult`.

A chain is written as `pass:option=value:option=value,pass,...`. Passes work in one of two domains:

module   on the torch module, before export: prune, factorize, distill. `distill` also retrains a
         pruned or factorized network, with the original as its teacher.
graph    on the exported ONNX graph: quantize, half.

protocol   the interfaces of a pass
options    the base class of its options, and checks of their values
module     the context and the result of a pass on the module
table      the passes by name, edgepack's own and those of plug-ins
repair     layers returned to float: their ranking and the search for the fewest
chain      chains: parse, check, select

To add a pass to edgepack, write a folder here with a class over `protocol.GraphPass` or
`protocol.ModulePass`, add a line to `table.PASSES`, a table of its options to both schemas
(`spec/schema`), and its tests. To add one in another distribution, name an instance of its class in
the group `edgepack.passes` of its entry points (see `edgepack.plugins`).

A module pass describes the structure that it produced as a recipe, JSON from which `replay`
rebuilds that structure out of the same module; weights are stored separately. See `passes.module`.
"""

from __future__ import annotations

from edgepack.passes.chain import (
    Step,
    check_chain,
    list_passes_needing,
    name_precision,
    parse_chain,
    parse_value,
    select_domain,
)
from edgepack.passes.protocol import GraphPass, ModulePass, PartialPass, Pass
from edgepack.passes.table import PASSES, find_pass, find_plugin, list_names

__all__ = [
    "PASSES",
    "GraphPass",
    "ModulePass",
    "PartialPass",
    "Pass",
    "Step",
    "check_chain",
    "find_pass",
    "find_plugin",
    "list_names",
    "list_passes_needing",
    "name_precision",
    "parse_chain",
    "parse_value",
    "select_domain",
]
