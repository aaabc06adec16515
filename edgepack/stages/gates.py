"""Which metric and which gates hold the quality of this model: known once its outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.errors import SpecError
from edgepack.request import Request
from edgepack.runtime.parity.accuracy import DECIDING, TOP
from edgepack.runtime.tensor import Tensor
from edgepack.stages.labels import Labels


def metric(request: Request, outputs: Sequence[Tensor], labels: Labels) -> str:
    """Return the task metric: as requested, else top-1 where the labels are used; "" for none.

    Raises SpecError `metric-needs-labels` where the requested metric cannot be measured, and
    `metric-trivial` where it is always 100 %.
    """
    deciding = [tensor for tensor in outputs if tensor.kind in DECIDING]
    compared = deciding or [t for t in outputs if not t.dtype.startswith("float")]
    on_metric = sorted(request.stated & {"max_drop", "metric_ratio"})
    requested = request.metric or next(iter(on_metric), "")
    if not compared and "agreement" in request.stated:
        requested = requested or "agreement"
    measurable = labels.used if requested != "agreement" else bool(compared)
    if requested and not measurable:
        raise _unmeasurable(requested, bool(deciding), labels)
    if not labels.used:
        return ""
    if TOP.get(request.metric, 1) > 1:
        _refuse_trivial(request.metric, deciding)
    return request.metric or next(iter(TOP))


def _unmeasurable(requested: str, deciding: bool, labels: Labels) -> SpecError:
    if deciding and not labels.unused:
        why = "the evaluation samples have no labels"
        hint = "store the labels under `labels` in the evaluation .npz"
    else:
        why = labels.unused or "no output is class scores"
        hint = 'a manifest says which output is: [[outputs]] name = "...", kind = "scores"'
    return SpecError(
        "metric-needs-labels",
        f"{requested} was requested, and it cannot be measured",
        why=why,
        hint=hint,
    )


def _refuse_trivial(metric: str, deciding: Sequence[Tensor]) -> None:
    """Refuse the k best of no more than k classes: the right one is always among them."""
    scores = [tensor for tensor in deciding if tensor.kind == "scores"]
    sizes = [tensor.shape[tensor.axis] for tensor in scores]
    if any(not isinstance(size, int) or size > TOP[metric] for size in sizes):
        return
    raise SpecError(
        "metric-trivial",
        f"{metric} was requested, and it would be 100 % whatever the model answers",
        why=f"the most classes of an output: {max(sizes, default=2)}",
        hint="--metric top1",
    )


def quality(request: Request, outputs: Sequence[Tensor], labels: Labels) -> dict[str, Any]:
    """Return the gates of quality: on agreement and SNR, and on the metric where there is one.

    Without a metric, or where the original is at chance, a gate on it is held only where the user
    states it. Where the user allows a loss of the metric and states no agreement, the bound on
    agreement is lowered by as much: every decision that is lost is also one that differs.

    Raises as `metric` does, and SpecError gates-empty where none applies.
    """
    bounds = dict(request.quality)
    if not metric(request, outputs, labels) or labels.chance:
        for gate in {"metric_ratio", "max_drop"} - request.stated:
            bounds.pop(gate, None)
    elif "agreement" in bounds and "agreement" not in request.stated:
        bounds["agreement"] = max(0.0, bounds["agreement"] - _allowed_loss(request))
    return held(bounds, "quality", "neither the profile nor the manifest states one that applies")


def _allowed_loss(request: Request) -> float:
    """Return the share of decisions that the user's own gates on the metric let the model lose."""
    losses = []
    if "max_drop" in request.stated:
        losses.append(request.quality["max_drop"] / 100)
    if "metric_ratio" in request.stated:
        losses.append(1 - request.quality["metric_ratio"])
    return min(losses, default=0.0)


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
