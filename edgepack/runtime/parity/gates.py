"""Gates: compare metrics with their bounds, for host and device alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Mapping, Optional, Sequence, Tuple

from .parts import SNR_LIMIT, Part, Parts

if TYPE_CHECKING:
    from ..documents import Gate, MetricResult, OutputMetrics, PartErrors

Bounds = Mapping[str, float]
"""Gate to bound."""

# Minimum share of equal integers if no gate states one; the built-in profiles use the same.
AGREEMENT = 0.97
# SNR of fidelity in dB, for bundles whose gates state neither an SNR nor bit equality.
FIDELITY_DB = 40.0
# SNR in dB at another size of an axis, if no gate of quality states one.
SIZE_DB = 10.0


def _allowed_misses(count: float, share: float) -> int:
    """Return the number of misses that a rate allows.

    At least one, unless the rate is 0: 3 % of 200 samples are 6, and of 10 samples 1, since so few
    samples cannot resolve the rate.
    """
    if share <= 0:
        return 0
    return max(1, int(count * share + 1e-9))


def make_gate(
    name: str,
    output: str,
    bound: float,
    measured: Optional[float],
    passed: bool,
    note: str = "",
) -> Gate:
    """Return the record of a gate."""
    return {
        "name": name,
        "output": output,
        "bound": bound,
        "measured": measured,
        "passed": bool(passed),
        # Notes qualify a pass; a failure needs none.
        "note": note if passed else "",
    }


def judge(
    bounds: Bounds,
    outputs: Mapping[str, OutputMetrics],
    metric: Optional[MetricResult] = None,
) -> List[Gate]:
    """Compare metrics with their gates.

    Args:
        bounds: gate -> bound. `snr_db` and `cosine` are minima for every output, the SNR for
            every part of it; `agreement` is the minimum share of equal top-1 decisions for outputs
            that decide, and of equal elements for integers; `bit_exact` requires the same bits;
            `metric_ratio` is the minimum share of the original's task metric (MLPerf's rule);
            `max_drop` its maximum loss in points.
        outputs: per output, the result of `Parity`.
        metric: the task metric, from `Accuracy` or the build host; its two gates are skipped
            without it.

    Returns one record for each applied gate. A value that is not finite fails.
    """
    gates: List[Gate] = []
    for output, metrics in outputs.items():
        if metrics["nonfinite"]:
            gates.append(make_gate("finite", output, 0, metrics["nonfinite"], False))
        if bounds.get("bit_exact"):
            exact = metrics["bit_exact"]
            gates.append(make_gate("bit_exact", output, True, exact, exact))
        if metrics["compared"] == "equality":
            # Every profile bounds the agreement; a manifest without a bound gets AGREEMENT.
            if not bounds.get("bit_exact"):
                gates.append(_judge_agreement(bounds.get("agreement", AGREEMENT), output, metrics))
            continue
        if "snr_db" in bounds:
            snr = metrics["snr_db"]
            passed = snr is None or snr >= bounds["snr_db"]
            gate = make_gate("snr_db", output, bounds["snr_db"], snr, passed)
            # The SNR is that of the worst part, so the record names it.
            gates.append({**gate, "part": metrics["part"]})
        if "cosine" in bounds:
            cosine = metrics["cosine"]
            gates.append(
                make_gate("cosine", output, bounds["cosine"], cosine, cosine >= bounds["cosine"])
            )
        if "agreement" in bounds and metrics["decisions"]:
            gates.append(_judge_agreement(bounds["agreement"], output, metrics))
    if metric is not None:
        gates.extend(_judge_metric(bounds, metric))
    return gates


def _judge_agreement(bound: float, output: str, metrics: OutputMetrics) -> Gate:
    count, share = metrics["decisions"], metrics["top1_agreement"]
    if share is None:
        return make_gate("agreement", output, bound, 1.0, True)
    # With a bound of 0.97 and 200 decisions, up to _allowed(200, 0.03) = 6 may differ.
    passed = round(count * (1.0 - share)) <= _allowed_misses(count, 1.0 - bound)
    return make_gate("agreement", output, bound, share, passed, _few(count, 1.0 - bound))


def judge_reference(
    evaluated: Mapping[str, OutputMetrics],
    host: Mapping[str, OutputMetrics],
    outputs: Mapping[str, OutputMetrics],
    parts: Parts,
    fidelity: Bounds,
) -> List[Gate]:
    """Compare the answers to the reference samples with the build's measurements.

    A few samples cannot be judged by rates of a whole evaluation set. Instead none of them may be
    worse than the worst evaluation sample, and no more decisions may be wrong than on the build
    host. If fidelity allows a different arithmetic, its noise is allowed here too.

    Args:
        evaluated: per output, the build's metrics on its evaluation set.
        host: per output, the result of `Parity` for the build host's answers to these samples.
        outputs: per output, the result of `Parity` for this device's answers.
        parts: of every output.
        fidelity: the gates of fidelity.

    Returns one record for each gate, with `worst_db`, the SNR in dB of the worst sample, and
    `agreement`, the share of equal decisions, among them.
    """
    gates: List[Gate] = []
    exact, noise = bool(fidelity.get("bit_exact")), 0.0
    if not exact:
        noise = 10.0 ** (-fidelity.get("snr_db", FIDELITY_DB) / 20.0)
    for output, metrics in outputs.items():
        if metrics["nonfinite"]:
            gates.append(make_gate("finite", output, 0, metrics["nonfinite"], False))
        limits = zip(
            parts[output], metrics["parts"], evaluated[output]["parts"], host[output]["parts"]
        )
        rows = [_judge_worst(output, part, noise, *errors) for part, *errors in limits]
        if rows:
            # The part with the smallest margin decides, and its figures are shown.
            gates.append(min(rows, key=_margin))
        if metrics["decisions"]:
            gates.append(_judge_decisions(output, metrics, host[output], exact))
    return gates


def _judge_worst(
    output: str,
    part: Part,
    noise: float,
    measured: PartErrors,
    evaluated: PartErrors,
    host: PartErrors,
) -> Gate:
    """Compare the largest error of one sample with the largest in the build.

    Root mean squares at most add up: the build's error, plus 1 % for the order of sums, and the
    noise of a different arithmetic, a share of the signal. A worst error of 0.04 (RMS 0.2), noise
    of 0.01 and a variance of 1 allow (1.01 * 0.2 + 0.01 * 1) ** 2 = 0.045.
    """
    largest = max(evaluated["worst_error"], host["worst_error"])
    allowed = (1.01 * largest**0.5 + noise * part.variance**0.5) ** 2
    return _judge_error(output, part, measured["worst_error"], allowed)


def judge_size(
    bounds: Bounds,
    output: str,
    metrics: OutputMetrics,
    evaluated: OutputMetrics,
    parts: Sequence[Part],
) -> List[Gate]:
    """Compare an answer at another size of an axis with the errors on the evaluation samples.

    It is a single, synthetic sample: its error may be twice that of the worst evaluation sample,
    or up to the gate on all of them. In a graph that is wrong at other sizes, or from the second
    row of a batch on, the error is as large as the signal.

    Args:
        bounds: the gates of quality.
        output: name of the output, with the size.
        metrics: the result of `Parity` for that answer.
        evaluated: metrics of this output on the evaluation set.
        parts: of this output.
    """
    gates: List[Gate] = []
    if metrics["nonfinite"]:
        gates.append(make_gate("finite", output, 0, metrics["nonfinite"], False))
    # An SNR of 20 dB is a noise of 10 ** (-20 / 20) = 0.1 of the signal's RMS.
    share = 10.0 ** (-bounds.get("snr_db", SIZE_DB) / 20.0)
    rows = []
    for part, measured, worst in zip(parts, metrics["parts"], evaluated["parts"]):
        rms = max(2.0 * worst["worst_error"] ** 0.5, share * part.variance**0.5)
        rows.append(_judge_error(output, part, measured["worst_error"], rms**2))
    if rows:
        gates.append(min(rows, key=_margin))
    elif metrics["decisions"]:
        gate = _judge_agreement(bounds.get("agreement", AGREEMENT), output, metrics)
        # Of so few decisions one may miss: the bound that this leaves is the one to show.
        misses = _allowed_misses(metrics["decisions"], 1.0 - gate["bound"])
        least = 1.0 - misses / metrics["decisions"]
        gates.append({**gate, "bound": min(gate["bound"], least)})
    return gates


def _judge_error(output: str, part: Part, error: float, allowed: float) -> Gate:
    bound, snr = part.snr_db(allowed), part.snr_db(error)
    finite_bound = SNR_LIMIT if bound is None else bound
    return {
        **make_gate("worst_db", output, finite_bound, snr, error <= allowed),
        "part": part.label,
    }


def _margin(gate: Gate) -> Tuple[bool, float]:
    # Failed gates sort before passed ones, and among equals the smaller margin comes first.
    measured = SNR_LIMIT if gate["measured"] is None else gate["measured"]
    return gate["passed"], measured - gate["bound"]


def _judge_decisions(output: str, metrics: OutputMetrics, host: OutputMetrics, exact: bool) -> Gate:
    # Callers check that there are decisions, so that there are shares of them.
    count, share = metrics["decisions"], metrics["top1_agreement"] or 0.0
    bound = host["top1_agreement"] or 0.0
    # A different arithmetic may flip near ties.
    slack = 0 if exact else _allowed_misses(count, 1.0 - AGREEMENT)
    passed = round(count * (bound - share)) <= slack
    return make_gate("agreement", output, bound, share, passed, "as on the build host")


def _judge_metric(bounds: Bounds, metric: MetricResult) -> List[Gate]:
    if "higher_is_better" in metric:
        return _judge_value(bounds, metric)
    gates: List[Gate] = []
    samples, name = metric["samples"], metric["name"]
    # Accuracies of 0.90 and 0.88 on 500 samples are 10 lost ones.
    lost = round((metric["original"] - metric["model"]) * samples)
    if "metric_ratio" in bounds:
        right = metric["original"] * samples
        share = 1.0 - bounds["metric_ratio"]
        # An original without a correct prediction fails the gate: a share of 0 bounds nothing.
        ratio = metric["model"] / metric["original"] if metric["original"] else 0.0
        note = _few(right, share)
        passed = metric["original"] > 0 and lost <= _allowed_misses(right, share)
        gates.append(make_gate("metric_ratio", name, bounds["metric_ratio"], ratio, passed, note))
    if "max_drop" in bounds:
        share = bounds["max_drop"] / 100.0
        note = _few(samples, share)
        passed = lost <= _allowed_misses(samples, share)
        gates.append(
            make_gate("max_drop", name, bounds["max_drop"], metric["drop_points"], passed, note)
        )
    return gates


def _judge_value(bounds: Bounds, metric: MetricResult) -> List[Gate]:
    """Judge a metric that is not a share of decisions, so that no number of misses is allowed.

    An error of 0.20 that becomes 0.25 has a ratio of 0.20 / 0.25 = 0.8, and a drop of 5 points.
    """
    gates: List[Gate] = []
    better, worse = metric["model"], metric["original"]
    if not metric["higher_is_better"]:
        better, worse = worse, better
    if "metric_ratio" in bounds:
        # The original's is positive, or there would be no gate. A model without any error has no
        # ratio, and is better than any original.
        ratio = better / worse if worse > 0 else 1.0
        passed = ratio >= bounds["metric_ratio"]
        gates.append(
            make_gate("metric_ratio", metric["name"], bounds["metric_ratio"], ratio, passed)
        )
    if "max_drop" in bounds:
        drop = metric["drop_points"]
        # The difference of two floats: 0.3 - 0.2 is 0.09999999999999998.
        passed = drop <= bounds["max_drop"] + 1e-9
        gates.append(make_gate("max_drop", metric["name"], bounds["max_drop"], drop, passed))
    return gates


def _few(count: float, share: float) -> str:
    if share <= 0 or count * share >= 1 - 1e-9:
        return ""
    return f"one miss is allowed: {count:.0f} samples are too few to measure this rate"


def describe_bound(name: str, bound: float) -> str:
    """Format the bound of a gate from the index: `SNR at least 20 dB`."""
    if name == "bit_exact" and not bound:
        return "different bits are allowed"
    return f"{_MEASURES[name]} {_format_limit(name, bound)}".strip()


def describe_gate(gate: Gate) -> str:
    """Format a gate in one line: `ok   scores: SNR 41.2 dB (at least 20 dB)`."""
    mark = "FAIL"
    if gate["passed"]:
        mark = "ok  "
    name, subject = gate["name"], gate["output"] + gate.get("part", "")
    measured, limit = _format_measured(name, gate["measured"]), _format_limit(name, gate["bound"])
    line = f"{mark} {subject}: {measured} ({limit})"
    if gate["note"]:
        line += f"; {gate['note']}"
    return line


# Gate -> the value that it bounds, in words; and the format of its bound.
_MEASURES = {
    "snr_db": "SNR",
    "worst_db": "SNR of the worst sample",
    "input_db": "SNR of the worst sample",
    "cosine": "cosine",
    "agreement": "top-1 agreement",
    "metric_ratio": "share of the original's metric",
    "max_drop": "drop of the metric in points",
    "bit_exact": "",
    "min_share": "share of the model",
}
_LIMITS = {
    "snr_db": "at least {:.4g} dB",
    "worst_db": "at least {:.4g} dB",
    "input_db": "at least {:.4g} dB",
    "cosine": "at least {:g}",
    "agreement": "at least {:.4g} %",
    "metric_ratio": "at least {:.4g} %",
    "max_drop": "at most {:g}",
    "metric_min": "at least {:g}",
    "metric_max": "at most {:g}",
    "bit_exact": "the same bits",
    "built": "every gate of its build",
    "finite": "none",
    "min_share": "at least {:.4g} %",
}
# Gates whose values are shares, shown in percent.
_SHARES = ("agreement", "metric_ratio", "min_share")


def _format_limit(name: str, bound: float) -> str:
    if name in _SHARES:
        bound = 100 * bound
    return _LIMITS[name].format(bound)


def _format_measured(name: str, value: Optional[float]) -> str:
    """Format the measured value of a gate: `SNR 41.2 dB`, `top-1 agreement 98.5 %`."""
    if name in ("snr_db", "worst_db", "input_db"):
        # An exact answer has no finite SNR.
        return f"{_MEASURES[name]} " + ("exact" if value is None else f"{value:.1f} dB")
    number = value or 0
    if name == "bit_exact":
        return "same bits" if value else "different bits"
    if name == "built":
        return "rejected by its build, which missed a gate on the evaluation set"
    if name == "finite":
        return f"{number} values are not finite"
    if name == "cosine":
        return f"cosine {number:.5f}"
    if name == "max_drop":
        return f"drop of {number:.2f} points"
    if name == "metric_ratio":
        return f"{100 * number:.4g} % of the original"
    if name == "min_share":
        return f"{100 * number:.4g} % of the model"
    if name in ("metric_min", "metric_max"):
        return f"{number:.4g}"
    return f"top-1 agreement {100 * number:.4g} %"
