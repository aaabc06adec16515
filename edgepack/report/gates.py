"""Gates as people read them: what was measured, the bound, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.report.figures import apart, decibel, number, percent, points

_SIGNS = {"at-least": "≥", "at-most": "≤", "equal": "", None: ""}


@dataclass(frozen=True)
class _Kind:
    """How one kind of gate is read.

    Attributes:
        label: what is measured, in words; braces take the name of the task's metric, which
            stands in such a gate in the place of the output.
        relation: "at-least", "at-most", "equal", or None where it is not known.
        text: a value and a number of digits, as text.
        digits: to begin with.
        margin: the same for the difference of two values.
    """

    label: str
    relation: str | None
    text: Callable[[float, int], str] = number
    digits: int = 4
    margin: Callable[[float, int], str] = number


def _share_points(value: float, digits: int) -> str:
    return points(value * 100, digits)


_PERCENT: dict[str, Any] = {"text": percent, "digits": 1, "margin": _share_points}
_POINTS: dict[str, Any] = {"text": points, "digits": 2, "margin": points}
_KINDS = {
    "snr_db": _Kind("SNR", "at-least", decibel, 1, decibel),
    "worst_db": _Kind("SNR of the worst sample", "at-least", decibel, 1, decibel),
    "cosine": _Kind("Cosine", "at-least"),
    "max_abs": _Kind("Largest error", "at-most"),
    "agreement": _Kind("Top-1 agreement", "at-least", **_PERCENT),
    "metric_ratio": _Kind("Share of the original's {}", "at-least", **_PERCENT),
    "max_drop": _Kind("Drop of {}", "at-most", **_POINTS),
    "bit_exact": _Kind("Bit-exact", "equal"),
    "finite": _Kind("Values not finite", "at-most"),
}


def _kind(gate: Mapping[str, Any]) -> _Kind:
    name = str(gate["name"])
    if kind := _KINDS.get(name):
        return kind
    return _Kind(name.replace("_", " "), None)


def relation(gate: Mapping[str, Any]) -> str | None:
    """How `measured` must stand to `bound`: as the gate says, or as its name is known for."""
    return gate.get("relation") or _kind(gate).relation


@dataclass(frozen=True)
class GateRow:
    """One gate, as text.

    Attributes:
        label: what is measured.
        output: of which output; empty where of the whole model.
        measured: the value.
        bound: the bound with its sign.
        margin: how far measured is on the right side of the bound; negative where it was missed;
            empty where the two cannot be compared.
        passed: whether it passed.
        decisive: whether missing it fails the build.
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


def gate_row(gate: Mapping[str, Any]) -> GateRow:
    """One gate of the report as text."""
    kind, measured, bound = _kind(gate), gate["measured"], gate["bound"]
    holds = relation(gate)
    margin = ""
    if measured is None:
        exact = gate["name"] in ("snr_db", "worst_db") and gate["passed"]
        texts = ("exact" if exact else "not finite"), _text(kind, bound)
    elif isinstance(measured, bool) or isinstance(bound, bool):
        texts = (
            _text(kind, measured),
            {True: "required", False: "excluded"}.get(bound, _text(kind, bound)),
        )
    else:
        texts = apart(kind.text, measured, bound, kind.digits)
        if holds in ("at-least", "at-most"):
            slack = measured - bound if holds == "at-least" else bound - measured
            digits = 2 if kind.margin is number else kind.digits
            margin = ("+" if slack >= 0 else "−") + apart(kind.margin, abs(slack), 0.0, digits)[0]
    output = (gate.get("output") or "") + gate.get("part", "")
    of_metric = "{}" in kind.label
    return GateRow(
        label=kind.label.format(output or "the metric"),
        output="" if of_metric else output,
        measured=texts[0],
        bound=f"{_SIGNS[holds]} {texts[1]}".strip(),
        margin=margin,
        passed=gate["passed"],
        decisive=gate.get("decisive", True),
        note=gate.get("note", ""),
    )


def _text(kind: _Kind, value: float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return kind.text(value, kind.digits)


def describe_gate(gate: Mapping[str, Any]) -> str:
    """One gate in one line: "SNR of logits: 9.6 dB (≥ 19.0 dB)"."""
    row = gate_row(gate)
    line = f"{row.label} of {row.output}" if row.output else row.label
    line = f"{line}: {row.measured} ({row.bound})"
    return f"{line}; {row.note}" if row.note else line
