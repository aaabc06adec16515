"""Gates: metrics held against their bounds, for host and device alike."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple


def _allowed(count: float, share: float) -> int:
    """Misses that a rate allows: one at least, since fewer samples cannot tell it; or none."""
    return max(1, int(count * share + 1e-9)) if share > 0 else 0


def _gate(name: str, output: str, bound: Any, measured: Any, passed: bool, note: str = "") -> Any:
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
        bounds: gate to bound. `snr_db` and `cosine` are minima for every output; `agreement` is
            the smallest share of equal top-1 decisions, for outputs that are scores;
            `bit_exact` asks for the same bits; `metric_ratio` is the smallest share of the
            original's task metric (MLPerf's rule); `max_drop` its largest loss in points.
        outputs: per output, what `Parity.result` gives.
        metric: what `Accuracy.result` gives; without it the two gates on it are not applied.

    Returns one record for each gate that was applied. A number that is not finite fails.
    """
    gates: List[Dict[str, Any]] = []
    for output, found in outputs.items():
        if found["nonfinite"]:
            gates.append(_gate("finite", output, 0, found["nonfinite"], False))
        if "snr_db" in bounds:
            snr = found["snr_db"]
            passed = snr is None or snr >= bounds["snr_db"]
            gates.append(_gate("snr_db", output, bounds["snr_db"], snr, passed))
        if "cosine" in bounds:
            cosine = found["cosine"]
            gates.append(
                _gate("cosine", output, bounds["cosine"], cosine, cosine >= bounds["cosine"])
            )
        if bounds.get("bit_exact"):
            exact = found["bit_exact"]
            gates.append(_gate("bit_exact", output, True, exact, exact))
        if "agreement" in bounds and found["decisions"]:
            count, share = found["decisions"], found["top1_agreement"]
            allowed = _allowed(count, 1.0 - bounds["agreement"])
            passed = round(count * (1.0 - share)) <= allowed
            note = _few(count, 1.0 - bounds["agreement"])
            gates.append(_gate("agreement", output, bounds["agreement"], share, passed, note))
    if metric is not None:
        gates.extend(_judge_metric(bounds, metric))
    return gates


def _judge_metric(bounds: Mapping[str, Any], metric: Mapping[str, Any]) -> List[Dict[str, Any]]:
    gates: List[Dict[str, Any]] = []
    samples, name = metric["samples"], metric["name"]
    lost = round((metric["original"] - metric["model"]) * samples)
    if "metric_ratio" in bounds:
        right = metric["original"] * samples
        share = 1.0 - bounds["metric_ratio"]
        ratio = metric["model"] / metric["original"] if metric["original"] else 1.0
        note = _few(right, share)
        passed = lost <= _allowed(right, share)
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


def excuse(gates: List[Dict[str, Any]], host: Mapping[str, Mapping[str, Any]]) -> None:
    """Pass the quality gates that the build host, too, missed on these few samples.

    The bundle's quality was judged on the whole evaluation set. On the handful that ships, a
    bound may be missed by the draw; what must hold here is that this device does no worse than
    the build host did on the same samples.

    Args:
        gates: what `judge` gave for this device; changed in place.
        host: per output, the build host's metrics on the same samples.
    """
    for gate in gates:
        best = host.get(gate["output"], {}).get(_METRIC.get(gate["name"], ""))
        if not gate["passed"] and best is not None and gate["measured"] is not None:
            gate["passed"] = bool(gate["measured"] >= best)
            gate["note"] = "no worse than on the build host, whose evaluation set passed"


_METRIC = {"snr_db": "snr_db", "cosine": "cosine", "agreement": "top1_agreement"}


def describe_gate(gate: Dict[str, Any]) -> str:
    """One gate in one line."""
    bound, found = gate["bound"], gate["measured"]
    texts: Dict[str, Tuple[str, str, Callable[[Any], str]]] = {
        "snr_db": ("SNR {}", "at least {:g} dB", lambda v: "exact" if v is None else f"{v:.1f} dB"),
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
    line = f"{mark} {gate['output']}: {measured.format(show(found))} ({asked.format(bound)})"
    return line + (f"; {gate['note']}" if gate["note"] else "")
