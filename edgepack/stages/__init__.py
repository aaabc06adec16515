"""The stages of a build, each with its record in the ledger, up to the model that will ship."""

from edgepack.stages.emulate import check_host, emulate, foreign
from edgepack.stages.graph import Graph, apply, build_engine, export, simplify
from edgepack.stages.original import (
    EVALUATION_BATCH,
    Reference,
    ask_original,
    evaluation_frames,
)
from edgepack.stages.samples import SampleSets, evaluation_of, open_samples
from edgepack.stages.source import load_source, settle_inputs

__all__ = [
    "EVALUATION_BATCH",
    "Graph",
    "Reference",
    "SampleSets",
    "apply",
    "ask_original",
    "build_engine",
    "check_host",
    "emulate",
    "evaluation_frames",
    "evaluation_of",
    "export",
    "foreign",
    "load_source",
    "open_samples",
    "settle_inputs",
    "simplify",
]
