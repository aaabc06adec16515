"""Gates: metrics held against their bounds, for host and device alike."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .parts import SNR_LIMIT, Part, Parts

# The least share of equal integers where no gate states one, as every profile's.
AGREEMENT = 0.97
# The SNR in dB of fidelity where a bundle's gates state neither that nor the same bits.
FIDELITY_DB = 40.0
# The SNR in dB at another size of an axis where no gate of quality states one.
SIZE_DB = 10.0


def _allowed(count: float, share: float) -> int:
    """Misses that a rate allows: one at least, since fewer samples cannot tell it; or none."""
    return max(1, int(count * share + 1e-9)) if share > 0 else 0


def _gate(
    name: str, output: str, bound: Any, measured: Any, passed: bool, note: str = ""
) -> Dict[str, Any]:
    return {
        "name": name,
        "output": output,
        "bound": bound,
        "measured": measured,
        "passed": bool(passed),
        "note": note if passed else "",
    }


def judge(
    bounds: Mapping[str, Any],
    outputs: Mapping[str, Mapping[str, Any]],
    metric: Optional[Mapping[str, Any]] = None,
) -> List[Dict[str, Any]]:
    """Hold metrics against gates.

    Args:
        bounds: gate to bound. `snr_db` and `cosine` are minima for every output, the SNR for
            every part of it; `agreement` is the smallest share of equal top-1 decisions, for
            outputs that are scores, and of equal elements, for integers; `bit_exact` asks for
            the same bits; `metric_ratio` is the smallest share of the original's task metric
            (MLPerf's rule); `max_drop` its largest loss in points.
        outputs: per output, the result of `Parity`.
        metric: the result of `Accuracy`; without it the two gates on it are not applied.

    Returns one record for each gate that was applied. A number that is not finite fails.
    """
    gates: List[Dict[str, Any]] = []
    for output, metrics in outputs.items():
        if metrics["nonfinite"]:
            gates.append(_gate("finite", output, 0, metrics["nonfinite"], False))
        if bounds.get("bit_exact"):
            exact = metrics["bit_exact"]
            gates.append(_gate("bit_exact", output, True, exact, exact))
        if metrics["compared"] == "equality":
            # No profile goes without a bound on agreement; a manifest that states none keeps this.
            if not bounds.get("bit_exact"):
                gates.append(_judge_agreement(bounds.get("agreement", AGREEMENT), output, metrics))
            continue
        if "snr_db" in bounds:
            snr = metrics["snr_db"]
            passed = snr is None or snr >= bounds["snr_db"]
            gate = _gate("snr_db", output, bounds["snr_db"], snr, passed)
            gates.append({**gate, "part": metrics["part"]})
        if "cosine" in bounds:
            cosine = metrics["cosine"]
            gates.append(
                _gate("cosine", output, bounds["cosine"], cosine, cosine >= bounds["cosine"])
            )
        if "agreement" in bounds and metrics["decisions"]:
            gates.append(_judge_agreement(bounds["agreement"], output, metrics))
    if metric is not None:
        gates.extend(_judge_metric(bounds, metric))
    return gates


def _judge_agreement(bound: float, output: str, metrics: Mapping[str, Any]) -> Dict[str, Any]:
    count, share = metrics["decisions"], metrics["top1_agreement"]
    if not count:
        return _gate("agreement", output, bound, 1.0, True)
    passed = round(count * (1.0 - share)) <= _allowed(count, 1.0 - bound)
    return _gate("agreement", output, bound, share, passed, _few(count, 1.0 - bound))


def judge_reference(
    evaluated: Mapping[str, Mapping[str, Any]],
    host: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, Any]],
    parts: Parts,
    fidelity: Mapping[str, Any],
) -> List[Dict[str, Any]]:
    """Hold the answers to the reference samples against what the build measured.

    A handful of samples cannot be held to rates of a whole evaluation set, but none of them may
    be worse than the worst sample of it was, and no decision more may be wrong than on the build
    host. Where fidelity allows another arithmetic, its noise is allowed here as well.

    Args:
        evaluated: per output, what the build measured on its evaluation set.
        host: per output, the result of `Parity` for the build host's answers to these samples.
        outputs: the same for the answers of this device.
        parts: of every output.
        fidelity: the gates of fidelity.

    Returns one record for each gate, `worst_db` and `agreement` among them: the SNR in dB of the
    worst sample, and the share of equal decisions.
    """
    gates: List[Dict[str, Any]] = []
    exact = bool(fidelity.get("bit_exact"))
    noise = 0.0 if exact else 10.0 ** (-fidelity.get("snr_db", FIDELITY_DB) / 20.0)
    for output, metrics in outputs.items():
        if metrics["nonfinite"]:
            gates.append(_gate("finite", output, 0, metrics["nonfinite"], False))
        errors = (each[output]["parts"] for each in (evaluated, host))
        limits = zip(parts[output], metrics["parts"], *errors)
        rows = [_judge_worst(output, part, noise, *each) for part, *each in limits]
        if rows:
            # The part with the least room decides; its figures are shown.
            gates.append(min(rows, key=_room))
        if metrics["decisions"]:
            gates.append(_judge_decisions(output, metrics, host[output], exact))
    return gates


def _judge_worst(
    output: str,
    part: Part,
    noise: float,
    measured: Mapping[str, Any],
    evaluated: Mapping[str, Any],
    host: Mapping[str, Any],
) -> Dict[str, Any]:
    """Hold the largest error of one sample against the largest that the build saw.

    Root mean squares add up at the most: the build's error, a hundredth more for the order of
    sums, and the noise of another arithmetic, a share of the signal.
    """
    largest = max(evaluated["worst_error"], host["worst_error"])
    allowed = (1.01 * largest**0.5 + noise * part.variance**0.5) ** 2
    return _judge_error(output, part, measured["worst_error"], allowed)


def judge_size(
    bounds: Mapping[str, Any],
    output: str,
    metrics: Mapping[str, Any],
    evaluated: Mapping[str, Any],
    parts: Sequence[Part],
) -> List[Dict[str, Any]]:
    """Hold an answer at another size of an axis against what the evaluation samples showed.

    It is one sample, and a made-up one: it may err twice as far as the worst of the evaluation
    set, or as far as the gate lets all of them. A graph that is wrong at other sizes, or from the
    second row of a batch on, errs by as much as the signal.

    Args:
        bounds: the gates of quality.
        output: its name, with the size.
        metrics: the result of `Parity` for that answer.
        evaluated: of this output, the metrics on the evaluation set.
        parts: of this output.
    """
    gates: List[Dict[str, Any]] = []
    if metrics["nonfinite"]:
        gates.append(_gate("finite", output, 0, metrics["nonfinite"], False))
    share = 10.0 ** (-bounds.get("snr_db", SIZE_DB) / 20.0)
    rows = []
    for part, measured, worst in zip(parts, metrics["parts"], evaluated["parts"]):
        rms = max(2.0 * worst["worst_error"] ** 0.5, share * part.variance**0.5)
        rows.append(_judge_error(output, part, measured["worst_error"], rms**2))
    if rows:
        gates.append(min(rows, key=_room))
    elif metrics["decisions"]:
        gate = _judge_agreement(bounds.get("agreement", AGREEMENT), output, metrics)
        # Of so few decisions one may miss: the bound that this leaves is the one to show.
        misses = _allowed(metrics["decisions"], 1.0 - gate["bound"])
        least = 1.0 - misses / metrics["decisions"]
        gates.append({**gate, "bound": min(gate["bound"], least)})
    return gates


def _judge_error(output: str, part: Part, error: float, allowed: float) -> Dict[str, Any]:
    bound, snr = part.snr_db(allowed), part.snr_db(error)
    shown = SNR_LIMIT if bound is None else bound
    return {**_gate("worst_db", output, shown, snr, error <= allowed), "part": part.label}


def _room(gate: Mapping[str, Any]) -> Tuple[bool, float]:
    measured = SNR_LIMIT if gate["measured"] is None else gate["measured"]
    return gate["passed"], measured - gate["bound"]


def _judge_decisions(
    output: str, metrics: Mapping[str, Any], host: Mapping[str, Any], exact: bool
) -> Dict[str, Any]:
    count, share = metrics["decisions"], metrics["top1_agreement"]
    bound = host["top1_agreement"]
    # Another arithmetic may tip what was undecided.
    slack = 0 if exact else _allowed(count, 1.0 - AGREEMENT)
    passed = round(count * (bound - share)) <= slack
    return _gate("agreement", output, bound, share, passed, "as on the build host")


def _judge_metric(bounds: Mapping[str, Any], metric: Mapping[str, Any]) -> List[Dict[str, Any]]:
    gates: List[Dict[str, Any]] = []
    samples, name = metric["samples"], metric["name"]
    lost = round((metric["original"] - metric["model"]) * samples)
    if "metric_ratio" in bounds:
        right = metric["original"] * samples
        share = 1.0 - bounds["metric_ratio"]
        # An original that is right nowhere bounds nothing: there is no share of 0 to hold.
        ratio = metric["model"] / metric["original"] if metric["original"] else 0.0
        note = _few(right, share)
        passed = metric["original"] > 0 and lost <= _allowed(right, share)
        gates.append(_gate("metric_ratio", name, bounds["metric_ratio"], ratio, passed, note))
    if "max_drop" in bounds:
        share = bounds["max_drop"] / 100.0
        note = _few(samples, share)
        passed = lost <= _allowed(samples, share)
        gates.append(
            _gate("max_drop", name, bounds["max_drop"], metric["drop_points"], passed, note)
        )
    return gates


def _few(count: float, share: float) -> str:
    if share <= 0 or count * share >= 1 - 1e-9:
        return ""
    return "one miss is allowed: {:.0f} samples are too few to tell this rate".format(count)


def _decibel(value: Optional[float]) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def describe_gate(gate: Dict[str, Any]) -> str:
    """One gate in one line."""
    bound, found = gate["bound"], gate["measured"]
    texts: Dict[str, Tuple[str, str, Callable[[Any], str]]] = {
        "snr_db": ("SNR {}", "at least {:.4g} dB", _decibel),
        "worst_db": ("SNR of the worst sample {}", "at least {:.4g} dB", _decibel),
        "cosine": ("cosine {}", "at least {:g}", "{:.5f}".format),
        "agreement": ("top-1 agreement {} %", "at least {:.4g} %", lambda v: f"{100 * v:.4g}"),
        "bit_exact": ("{}", "the same bits", lambda v: "same bits" if v else "other bits"),
        "metric_ratio": ("{} % of the original", "at least {:.4g} %", lambda v: f"{100 * v:.4g}"),
        "max_drop": ("drop of {} points", "at most {:g}", "{:.2f}".format),
        "built": (
            "the build missed its gates on its evaluation set{}",
            "none missed",
            lambda v: "",
        ),
        "finite": ("{} values are not finite", "none", str),
    }
    measured, asked, show = texts[gate["name"]]
    if gate["name"] in ("agreement", "metric_ratio"):
        bound = 100 * bound
    mark = "ok  " if gate["passed"] else "FAIL"
    name = gate["output"] + gate.get("part", "")
    line = f"{mark} {name}: {measured.format(show(found))} ({asked.format(bound)})"
    return line + (f"; {gate['note']}" if gate["note"] else "")
