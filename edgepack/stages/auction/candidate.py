"""Candidates of the auction."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.context import Graph
from edgepack.report.figures import format_plural
from edgepack.runtime.bundle.engines import BF16, ONNXRUNTIME, Variant

OWN = Variant(ONNXRUNTIME, ONNXRUNTIME)
FP32, MIXED, DYNAMIC = "fp32", "mixed int8", "dynamic int8"
_ENGINES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Candidate:
    """Form of the model that may ship, and the variant that would run it.

    Attributes:
        form: precision of the graph, as the report names it: "fp32", "int8", "mixed int8", ...
        graph: the graph.
        variant: engine and settings that would run it.
        competes: False for a form that is only compared with.
    """

    form: str
    graph: Graph
    variant: Variant = OWN
    competes: bool = True

    @property
    def engine(self) -> str:
        """Engine that would run it, one of `engines.ENGINES`."""
        return self.variant.engine

    @property
    def name(self) -> str:
        """Name in the report: "int8 in onnxruntime", "fp32 in OpenVINO as bf16"."""
        settings = self.variant.settings
        name = f"{self.form} in {_ENGINES.get(self.engine, self.engine)}"
        if settings.precision == BF16:
            name += " as bf16"
        if settings.threads:
            name += f" on {format_plural(settings.threads, 'thread')}"
        return name

    @property
    def bytes(self) -> int:
        """Size of the model."""
        return len(self.graph.model)
