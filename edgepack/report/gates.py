"""Gates as text: the measured value, the bound, and the margin between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgepack.report.figures import (
    METRIC_LABELS,
    format_apart,
    format_decibel,
    format_number,
    format_percent,
    format_points,
    is_share_name,
)
from edgepack.runtime.documents import Gate

_SIGNS = {"at-least": "≥", "at-most": "≤", "equal": "", None: ""}
_BOOLEAN_BOUNDS = {True: "required", False: "excluded"}
_YES_NO = {True: "yes", False: "no"}


@dataclass(frozen=True)
class _Kind:
    """Format of one kind of gate.

    Attributes:
        label: the measured quantity in words; braces stand for the name of the task's metric,
            which such a gate carries instead of an output.
        relation: "at-least", "at-most", "equal", or None if unknown.
        text: formats a value with a number of digits.
        digits: number of digits to start with.
        margin: formats the difference of two values with a number of digits.
    """

    label: str
    relation: str | None
    text: Callable[[float, int], str] = format_number
    digits: int = 4
    margin: Callable[[float, int], str] = format_number


def _format_share_points(value: float, digits: int) -> str:
    return format_points(value * 100, digits)


_PERCENT: dict[str, Any] = {"text": format_percent, "digits": 1, "margin": _format_share_points}
_POINTS: dict[str, Any] = {"text": format_points, "digits": 2, "margin": format_points}
_KINDS = {
    "snr_db": _Kind("SNR", "at-least", format_decibel, 1, format_decibel),
    "worst_db": _Kind("SNR of the worst sample", "at-least", format_decibel, 1, format_decibel),
    "input_db": _Kind("SNR of the worst sample", "at-least", format_decibel, 1, format_decibel),
    "cosine": _Kind("Cosine", "at-least"),
    "max_abs": _Kind("Largest error", "at-most"),
    "agreement": _Kind("Top-1 agreement", "at-least", **_PERCENT),
    "metric_ratio": _Kind("{} relative to original", "at-least", **_PERCENT),
    "max_drop": _Kind("Drop of {}", "at-most", **_POINTS),
    "metric_min": _Kind("{}", "at-least"),
    "metric_max": _Kind("{}", "at-most"),
    "bit_exact": _Kind("Bit-exact", "equal"),
    "finite": _Kind("Non-finite values", "at-most"),
}


def _find_kind(gate: Gate) -> _Kind:
    name = str(gate["name"])
    if kind := _KINDS.get(name):
        # Bounds on the metric itself are written as the metric is: 0.8 of f1 is 80 %.
        if name in ("metric_min", "metric_max") and is_share_name(str(gate["output"])):
            return replace(kind, **_PERCENT)
        return kind
    # A newer edgepack may have gates that this one does not know.
    return _Kind(name.replace("_", " "), None)


def find_relation(gate: Gate) -> str | None:
    """Return the relation of `measured` to `bound`: the gate's own, else that of its name."""
    return gate.get("relation") or _find_kind(gate).relation


@dataclass(frozen=True)
class GateRow:
    """One gate, as text.

    Attributes:
        label: the measured quantity.
        output: name of the output; empty for the whole model.
        measured: the measured value.
        bound: the bound with its sign.
        margin: distance on the right side of the bound; negative on a miss; empty if the two
            cannot be compared.
        passed: true if the gate passed.
        decisive: true if missing it fails the build.
        note: the gate's own remark.
    """

    label: str
    output: str
    measured: str
    bound: str
    margin: str
    passed: bool
    decisive: bool
    note: str

    @property
    def title(self) -> str:
        """Label and output: "SNR of logits"."""
        if self.output:
            return f"{self.label} of {self.output}"
        return self.label


def format_gate(gate: Gate) -> GateRow:
    """Format one gate of the report."""
    kind = _find_kind(gate)
    measured, bound, margin = _format_values(gate, kind)
    # "boxes" and its part "[:, 0:4]" are "boxes[:, 0:4]"; a gate on the whole model has neither.
    output = (gate.get("output") or "") + gate.get("part", "")
    # A gate on the metric carries the metric's name as its output: "Drop of Top-1".
    of_metric = "{}" in kind.label
    return GateRow(
        label=kind.label.format(METRIC_LABELS.get(output, output) or "The metric"),
        output="" if of_metric else output,
        measured=measured,
        bound=f"{_SIGNS[find_relation(gate)]} {bound}".strip(),
        margin=margin,
        passed=gate["passed"],
        decisive=gate.get("decisive", True),
        note=gate.get("note", ""),
    )


def _format_values(gate: Gate, kind: _Kind) -> tuple[str, str, str]:
    """Format the measured value, the bound and the margin: ("19.8 dB", "19.0 dB", "+0.8 dB")."""
    measured, bound = gate["measured"], gate["bound"]
    if measured is None:
        # JSON has no infinity: a null SNR that passed is an error of exactly zero.
        if gate["name"] in ("snr_db", "worst_db") and gate["passed"]:
            return "exact", _format_value(kind, bound), ""
        return "not finite", _format_value(kind, bound), ""
    if isinstance(measured, bool) or isinstance(bound, bool):
        required = _BOOLEAN_BOUNDS.get(bool(bound), _format_value(kind, bound))
        return _format_value(kind, measured), required, ""
    texts = format_apart(kind.text, measured, bound, kind.digits)
    return (*texts, _format_margin(find_relation(gate), measured, bound, kind))


def _format_margin(relation: str | None, measured: float, bound: float, kind: _Kind) -> str:
    if relation == "at-least":
        slack = measured - bound
    elif relation == "at-most":
        slack = bound - measured
    else:
        return ""
    digits = kind.digits
    if kind.margin is format_number:
        # A margin needs fewer digits than the values: 0.9991 against 0.9900 is "+0.0091".
        digits = 2
    # Compared with 0.0, so that a margin which is not zero never prints as "+0.0".
    size, _ = format_apart(kind.margin, abs(slack), 0.0, digits)
    if slack < 0:
        return f"−{size}"
    return f"+{size}"


def _format_value(kind: _Kind, value: float | bool) -> str:
    if isinstance(value, bool):
        return _YES_NO[value]
    return kind.text(value, kind.digits)


def describe_gate(gate: Gate) -> str:
    """Return one gate as one line: "SNR of logits: 9.6 dB (≥ 19.0 dB)"."""
    row = format_gate(gate)
    line = f"{row.title}: {row.measured} ({row.bound})"
    if row.note:
        line += f"; {row.note}"
    return line
