"""Stages of a build, each with a record in the ledger, up to the model that ships."""

from edgepack.stages.auction import hold_auction
from edgepack.stages.graph import apply_graph_pass, build_engine, export, simplify
from edgepack.stages.module import apply_module_pass
from edgepack.stages.samples import check_split, list_missing_samples
from edgepack.stages.shared import SharedStages
from edgepack.stages.wheels import fetch_wheels

__all__ = [
    "SharedStages",
    "apply_graph_pass",
    "apply_module_pass",
    "build_engine",
    "check_split",
    "export",
    "fetch_wheels",
    "hold_auction",
    "list_missing_samples",
    "simplify",
]
