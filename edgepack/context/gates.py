"""Select the task metric and the gates of quality, once the model's outputs are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepack.context.labels import Labels
from edgepack.errors import SpecError
from edgepack.request import Request
from edgepack.runtime.parity.accuracy import DECIDING, TOP
from edgepack.runtime.tensor import Tensor

# Gates on the task metric.
METRIC_GATES = ("max_drop", "metric_ratio")


def choose_metric(request: Request, outputs: Sequence[Tensor], labels: Labels) -> str:
    """Return the task metric: the requested one, else top-1 if there are labels; "" for none.

    Labels that the original matches by chance alone prove nothing, so they are measured only on
    request.

    Raises SpecError `metric-needs-labels` if the requested metric cannot be measured, and
    `metric-trivial` if it is always 100 %.
    """
    # Class scores, logits and probabilities decide; without any, integers are compared by value.
    deciding = [tensor for tensor in outputs if tensor.kind in DECIDING]
    compared = deciding or [t for t in outputs if not t.dtype.startswith("float")]
    # A gate on the metric needs labels as the option --metric does.
    on_metric = sorted(request.explicit_gates.intersection(METRIC_GATES))
    requested = request.metric or next(iter(on_metric), "")
    if not compared and "agreement" in request.explicit_gates:
        requested = requested or "agreement"
    # Agreement compares decisions with the original's, and needs no labels.
    measurable = labels.used
    if requested == "agreement":
        measurable = bool(compared)
    if requested and not measurable:
        raise _make_metric_error(requested, bool(deciding), labels)
    # Top-1 unless another one was requested, and only where the labels mean something.
    if not labels.used or (labels.chance and not requested):
        return ""
    if TOP.get(request.metric, 1) > 1:
        _refuse_trivial(request.metric, deciding)
    return request.metric or next(iter(TOP))


def _make_metric_error(requested: str, deciding: bool, labels: Labels) -> SpecError:
    if deciding and not labels.unused:
        why = "the evaluation samples have no labels"
        hint = "store the labels under `labels` in the evaluation .npz"
    else:
        why = labels.unused or "no output is class scores"
        hint = 'name the output in the manifest: [[outputs]] name = "...", kind = "scores"'
    return SpecError(
        "metric-needs-labels",
        f"{requested} was requested, but cannot be measured",
        why=why,
        hint=hint,
    )


def _refuse_trivial(metric: str, deciding: Sequence[Tensor]) -> None:
    """Refuse top-k of k classes or fewer: the right one is always among them."""
    sizes = []
    for tensor in deciding:
        if tensor.kind != "scores":
            continue
        # A dynamic axis may hold any number of classes.
        size = tensor.shape[tensor.axis]
        if not isinstance(size, int) or size > TOP[metric]:
            return
        sizes.append(size)
    # Logits and probabilities decide between two classes.
    raise SpecError(
        "metric-trivial",
        f"{metric} was requested, but would be 100 % for any answers",
        why=f"largest number of classes of an output: {max(sizes, default=2)}",
        hint="--metric top1",
    )


def bound_quality(request: Request, outputs: Sequence[Tensor], labels: Labels) -> dict[str, float]:
    """Return the gates of quality: on agreement and SNR, and on the metric if there is one.

    Without a metric, or if the original is at chance, a gate on it applies only if the user sets
    it. If the user allows a loss of the metric and sets no agreement, the bound on agreement is
    lowered by the same amount, since every lost decision also differs: max_drop = 2 (points)
    lowers an agreement of 0.99 to 0.97. Points of other metrics than accuracies leave it alone.

    Raises as `choose_metric` does, and SpecError gates-empty if none applies.
    """
    # The profile's gate on the metric says nothing about samples that have no labels.
    bounds = dict(request.quality)
    # On generated inputs decisions are often nearly ties: a network without a word to read has
    # no opinion, and rounding turns it. The SNR is measured all the same.
    if request.generates_inputs and "agreement" not in request.explicit_gates:
        bounds.pop("agreement", None)
    if not choose_metric(request, outputs, labels) or labels.chance:
        for gate in set(METRIC_GATES) - request.explicit_gates:
            bounds.pop(gate, None)
    # A gate on agreement that the user sets holds as it is.
    elif (
        request.metric in ("", *TOP)
        and "agreement" in bounds
        and "agreement" not in request.explicit_gates
    ):
        bounds["agreement"] = max(0.0, bounds["agreement"] - _find_allowed_loss(request))
    return require_gates(
        bounds, "quality", "neither the profile nor the manifest sets one that applies"
    )


def _find_allowed_loss(request: Request) -> float:
    """Return the share of decisions that the user's gates on the metric let the model lose."""
    # max_drop = 2 points and metric_ratio = 0.99 allow 0.02 and 0.01; both must hold, so 0.01.
    # A gate of the profile is no allowance of the user's.
    losses = []
    if "max_drop" in request.explicit_gates:
        losses.append(request.quality["max_drop"] / 100)
    if "metric_ratio" in request.explicit_gates:
        losses.append(1 - request.quality["metric_ratio"])
    return min(losses, default=0.0)


def require_gates(bounds: Mapping[str, float], question: str, why: str) -> dict[str, float]:
    """Return the gates of a question. Raises SpecError gates-empty if there are none."""
    if not bounds:
        raise SpecError(
            "gates-empty",
            f"no gate applies to the {question} of this model",
            why=why,
            hint=f"set snr_db under [gates.{question}]",
        )
    return dict(bounds)
