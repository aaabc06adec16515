"""Candidates of the auction."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.context import Graph
from edgepack.runtime.bundle.engines import ONNXRUNTIME


@dataclass(frozen=True)
class Candidate:
    """Form of the model that may ship: a graph, and the engine that would run it.

    Attributes:
        form: precision of the graph, as the report names it: "fp32", "int8", "mixed", ...
        graph: the graph.
        engine: engine that would run it, one of `engines.ENGINES`.
    """

    form: str
    graph: Graph
    engine: str = ONNXRUNTIME

    @property
    def name(self) -> str:
        """Name in the report: "int8 in onnxruntime"."""
        return f"{self.form} in {self.engine}"

    @property
    def bytes(self) -> int:
        """Size of the model."""
        return len(self.graph.model)
