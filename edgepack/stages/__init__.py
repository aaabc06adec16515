"""Stages of a build, each with a record in the ledger, up to the model that ships."""

from edgepack.stages.emulate import check_host, emulate, emulates, foreign, stands_in
from edgepack.stages.given import Given, Graph
from edgepack.stages.graph import apply, build_engine, export, simplify
from edgepack.stages.module import apply_module
from edgepack.stages.original import (
    EVALUATION_BATCH,
    Reference,
    ask_original,
    evaluation_frames,
)
from edgepack.stages.samples import SampleSets, evaluation_of, missing, open_samples
from edgepack.stages.source import load_source, settle_inputs
from edgepack.stages.wheels import fetch_wheels

__all__ = [
    "EVALUATION_BATCH",
    "Given",
    "Graph",
    "Reference",
    "SampleSets",
    "apply",
    "apply_module",
    "ask_original",
    "build_engine",
    "check_host",
    "emulate",
    "emulates",
    "evaluation_frames",
    "evaluation_of",
    "export",
    "fetch_wheels",
    "foreign",
    "load_source",
    "missing",
    "open_samples",
    "settle_inputs",
    "simplify",
    "stands_in",
]
