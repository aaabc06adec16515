"""Which metric and which gates hold the quality of this model: known once its outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.errors import SpecError
from edgepack.request import Request
from edgepack.runtime.parity.accuracy import TOP
from edgepack.runtime.tensor import Tensor


def metric(request: Request, outputs: Sequence[Tensor], labelled: bool) -> str:
    """The task metric: as asked for, else top-1 where there are labels and scores.

    Raises SpecError metric-needs-labels where what was asked for cannot be measured.
    """
    scores = any(tensor.kind == "scores" for tensor in outputs)
    on_metric = sorted(request.stated & {"max_drop", "metric_ratio"})
    asked = request.metric or next(iter(on_metric), "")
    if not scores and "agreement" in request.stated:
        asked = asked or "agreement"
    if asked and not (scores and (labelled or asked == "agreement")):
        raise SpecError(
            "metric-needs-labels",
            f"{asked} was asked for, and it cannot be measured",
            why="the evaluation samples have no labels" if scores else "no output is class scores",
            hint="store the labels under `labels` in the evaluation .npz"
            if scores
            else 'a manifest says which output is: [[outputs]] name = "...", kind = "scores"',
        )
    if not (scores and labelled):
        return ""
    return request.metric or next(iter(TOP))


def quality(request: Request, outputs: Sequence[Tensor], labelled: bool) -> dict[str, Any]:
    """The gates of quality: on the metric where there is one, else on agreement.

    Raises as `metric` does, and SpecError gates-empty where none applies.
    """
    bounds = dict(request.quality)
    unused = ("agreement",) if metric(request, outputs, labelled) else ("metric_ratio", "max_drop")
    for gate in unused:
        if gate not in request.stated:
            bounds.pop(gate, None)
    return held(bounds, "quality", "neither the profile nor the manifest states one that applies")


def held(bounds: Mapping[str, Any], question: str, why: str) -> dict[str, Any]:
    """The gates of a question. Raises SpecError gates-empty where there are none."""
    if not bounds:
        raise SpecError(
            "gates-empty",
            f"no gate holds the {question} of this model",
            why=why,
            hint=f"state snr_db under [gates.{question}]",
        )
    return dict(bounds)
