"""Stages of a build, each with a record in the ledger, up to the model that ships."""

from edgepack.stages.context import BuildContext, Graph
from edgepack.stages.emulate import check_host, emulate, emulates, foreign, stands_in
from edgepack.stages.graph import apply_graph_pass, build_engine, export, simplify
from edgepack.stages.module import apply_module_pass
from edgepack.stages.original import (
    EVALUATION_BATCH,
    Reference,
    evaluation_frames,
    run_original,
)
from edgepack.stages.samples import SampleSets, evaluation_of, list_missing_samples, open_samples
from edgepack.stages.source import load_source, resolve_inputs
from edgepack.stages.wheels import fetch_wheels

__all__ = [
    "EVALUATION_BATCH",
    "BuildContext",
    "Graph",
    "Reference",
    "SampleSets",
    "apply_graph_pass",
    "apply_module_pass",
    "build_engine",
    "check_host",
    "emulate",
    "emulates",
    "evaluation_frames",
    "evaluation_of",
    "export",
    "fetch_wheels",
    "foreign",
    "list_missing_samples",
    "load_source",
    "open_samples",
    "resolve_inputs",
    "run_original",
    "simplify",
    "stands_in",
]
