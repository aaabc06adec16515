"""Table of the passes: edgepack's own, and those of installed plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from edgepack import plugins
from edgepack.ledger import STAGES_AFTER, STAGES_BEFORE
from edgepack.passes.options import PassOptions
from edgepack.passes.protocol import AnyGraphPass, AnyModulePass, AnyPass
from edgepack.plugins import Plugin, is_callable, is_subclass_of, is_text


def _prune() -> AnyModulePass:
    from edgepack.passes.prune import Prune

    return Prune()


def _factorize() -> AnyModulePass:
    from edgepack.passes.factorize import Factorize

    return Factorize()


def _distill() -> AnyModulePass:
    from edgepack.passes.distill import Distill

    return Distill()


def _quantize() -> AnyGraphPass:
    from edgepack.passes.quantize import Quantize

    return Quantize()


def _half() -> AnyGraphPass:
    from edgepack.passes.half import Half

    return Half()


# Functions, so that a pass is imported on first use. In the order in which they combine: structure
# first, then recovery, then the graph's arithmetic.
PASSES: dict[str, Callable[[], AnyPass]] = {
    "prune": _prune,
    "factorize": _factorize,
    "distill": _distill,
    "quantize": _quantize,
    "half": _half,
}


def list_names() -> tuple[str, ...]:
    """Return the names of all passes, edgepack's own first. Raises PluginError."""
    return (*PASSES, *_list_plugins())


def find_plugin(name: str) -> Plugin | None:
    """Return the plug-in that defines a pass; None for one of edgepack's own, or none."""
    return _list_plugins().get(name)


def find_pass(name: str) -> AnyPass:
    """Return the pass of a name; raises KeyError if there is none, PluginError if it is broken."""
    plugin = find_plugin(name)
    if plugin is None:
        return PASSES[name]()
    return _load(plugin)


def _list_plugins() -> dict[str, Plugin]:
    # The ledger has one record per stage and pass, so no plug-in may have a stage's name.
    reserved = (*PASSES, *STAGES_BEFORE, *STAGES_AFTER)
    return dict(plugins.list_plugins(plugins.PASSES, reserved))


@cache
def _load(plugin: Plugin) -> AnyPass:
    """Import the pass of a plug-in, and check that it has the members of its domain."""
    members: dict[str, Callable[[object], bool]] = {
        "name": lambda name: name == plugin.name,
        "domain": lambda domain: domain in ("module", "graph"),
        "options": is_subclass_of(PassOptions),
        "table": is_text,
        "precision": is_callable,
        "advice": is_callable,
        "apply": is_callable,
    }
    definition = cast("AnyPass", plugin.load(members))
    if definition.domain == "module":
        plugin.load({"replay": is_callable})
    return definition
