"""Select the task metric and the gates of quality, once the model's outputs are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepack.context.labels import Labels
from edgepack.errors import SpecError
from edgepack.metrics.protocol import TaskMetric
from edgepack.metrics.score import ERROR_SHARES
from edgepack.request import Request
from edgepack.runtime.documents import Gate, MetricResult
from edgepack.runtime.parity.accuracy import DECIDING, TOP
from edgepack.runtime.parity.gates import judge
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
    # The build host computes any other metric, and has refused one that cannot be measured.
    if request.metric not in ("", *TOP):
        return request.metric
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
    # A gate of the profile is not an allowance of the user's.
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


def judge_primary(bounds: Mapping[str, float], metric: MetricResult | None) -> list[Gate]:
    """Compare the primary metric of the build host with the gates of quality on it.

    A word error rate of 0.10 that becomes 0.12 has a ratio of 0.88 / 0.90 = 97.8 %.
    """
    if metric is not None and metric["name"] in ERROR_SHARES:
        accuracy = metric.copy()
        accuracy["original"], accuracy["model"] = 1 - metric["original"], 1 - metric["model"]
        accuracy["higher_is_better"] = True
        metric = accuracy
    return judge(bounds, {}, metric)


def judge_metrics(
    bounds: Mapping[str, Mapping[str, float]], metrics: Sequence[MetricResult]
) -> list[Gate]:
    """Compare metrics with the gates that name them.

    Args:
        bounds: by metric, the bounds `max_drop`, `ratio`, `min` and `max`.
        metrics: of a model; a metric that was not measured has no gate, since the model's answers
            are not finite, which fails a gate of its own.
    """
    gates: list[Gate] = []
    for metric in metrics:
        limits = bounds.get(metric["name"], {})
        relative = {RELATIVE[key]: bound for key, bound in limits.items() if key in RELATIVE}
        gates += judge_primary(relative, metric)
        value = metric["model"]
        if "min" in limits:
            gates.append(_bound_value("metric_min", metric, limits["min"], value >= limits["min"]))
        if "max" in limits:
            gates.append(_bound_value("metric_max", metric, limits["max"], value <= limits["max"]))
    return gates


# Bound of a named metric -> the gate's name.
RELATIVE = {"max_drop": "max_drop", "ratio": "metric_ratio"}


def _bound_value(name: str, metric: MetricResult, bound: float, passed: bool) -> Gate:
    return {
        "name": name,
        "output": metric["name"],
        "bound": bound,
        "measured": metric["model"],
        "passed": passed,
        "note": "",
    }


def describe_missed(bounds: Mapping[str, float], task: TaskMetric, value: float) -> str:
    """Return a warning for a bound that the original itself misses; "" for none."""
    if value < bounds.get("min", value):
        return f"the original's {task.name} is {value:.4g}; its gate requires {bounds['min']:g}"
    if value > bounds.get("max", value):
        return f"the original's {task.name} is {value:.4g}; its gate allows {bounds['max']:g}"
    return ""


def check_direction(bounds: Mapping[str, float], task: TaskMetric) -> None:
    """Refuse a bound on the better side of a metric, which would pass any loss.

    Raises SpecError `gate-direction`.
    """
    wrong, right = ("max", "min") if task.metric.higher_is_better else ("min", "max")
    if wrong in bounds:
        better = "higher" if task.metric.higher_is_better else "lower"
        raise SpecError(
            "gate-direction",
            f"the gate {wrong} on {task.name} would pass any loss",
            why=f"of {task.name}, {better} is better",
            hint=f"--gate {task.name}.{right}={bounds[wrong]:g}",
        )
