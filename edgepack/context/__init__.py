"""State of a build: its request, cache and ledger, and the results that later steps work on.

The stages produce these values and the proof judges them; neither imports the other.
"""

from edgepack.context.answers import EVALUATION_BATCH
from edgepack.context.build import BuildContext, Context
from edgepack.context.graph import Graph
from edgepack.context.labels import Labels, OutputKind
from edgepack.context.reference import Reference
from edgepack.context.samples import SampleSets

__all__ = [
    "EVALUATION_BATCH",
    "BuildContext",
    "Context",
    "Graph",
    "Labels",
    "OutputKind",
    "Reference",
    "SampleSets",
]
