"""The report as a document: `edgepack-report/1`, its schema, and that it agrees with itself.

A report is what somebody believes without having been there, so it is checked twice before it is
shown: its shape against `report.schema.json`, and its statements against each other. A verdict
that its own gates do not carry is refused.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from edgepack.errors import EdgepackError
from edgepack.report.cautions import NOISE, cautions
from edgepack.report.gates import relation

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

FORMAT = "edgepack-report/1"
# More faults than this tell nothing new.
_SHOWN = 8
# Figures may be stored rounded; a contradiction must be larger than that.
_ROUNDING = 1e-3


class ReportError(EdgepackError):
    """The report is not one: of another shape, or it contradicts itself."""


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the report."""
    text = files("edgepack.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def _validator() -> Validator:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry

    def number(_: Any, value: object) -> bool:
        # JSON has no NaN and no infinity, though Python's floats do; and Python's integers do not
        # end where a float does.
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )

    def integer(checker: Any, value: object) -> bool:
        return number(checker, value) and int(value) == value  # type: ignore[call-overload]

    strict = extend(
        Draft202012Validator,
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
            {"number": number, "integer": integer}
        ),
    )
    # An empty registry retrieves nothing: the schema stands on its own, without a network.
    validator: Validator = strict(schema(), registry=Registry())
    return validator


def encode(report: Mapping[str, Any]) -> bytes:
    """The report as the bytes of `report.json`: UTF-8, indented, a newline at its end."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def validate(report: Mapping[str, Any]) -> None:
    """Check a report's shape and that its statements agree.

    Raises:
        ReportError: `report-invalid`, with the path of every key that is wrong, or
            `report-contradiction`, with the statements that exclude each other.
    """
    faults = [f"{_path(error)}: {error.message}" for error in _deepest(report)]
    if faults:
        raise _refuse("report-invalid", f"this is not a report of the format {FORMAT}", faults)
    faults = list(_contradictions(report))
    if faults:
        raise _refuse("report-contradiction", "the report contradicts itself", faults)


def _deepest(report: Mapping[str, Any]) -> Iterator[Any]:
    """The schema's errors; where one of several forms was allowed, the error inside the best."""
    from jsonschema.exceptions import best_match

    for error in sorted(_validator().iter_errors(report), key=lambda e: list(map(str, e.path))):
        yield best_match([error]) if error.context else error


def _path(error: Any) -> str:
    return str(error.json_path).removeprefix("$").removeprefix(".") or "the report"


def _refuse(code: str, what: str, faults: list[str]) -> ReportError:
    shown = [fault if len(fault) <= 300 else fault[:299] + "…" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        shown.append(f"and {len(faults) - _SHOWN} more")
    return ReportError(
        code,
        what,
        why="\n".join(shown),
        hint="build the bundle again with this version of edgepack; it writes a new report",
    )


def _contradictions(report: Mapping[str, Any]) -> Iterator[str]:
    questions = {name: report[name] for name in ("quality", "fidelity")}
    for name, question in questions.items():
        decided = all(gate["passed"] for gate in question["gates"] if gate.get("decisive", True))
        if question["passed"] != decided:
            yield f"{name}.passed is {question['passed']}, its decisive gates say {decided}"
        for gate in question["gates"]:
            yield from _misjudged(name, gate)
    answers = {name: question["passed"] for name, question in questions.items()}
    for cpu, question in report.get("emulated", {}).items():
        if answers["fidelity"] and not question["passed"]:
            yield f"fidelity passed, and {cpu}, emulated, missed it"
    if report["verdict"] == "pass" and not all(answers.values()):
        missed = ", ".join(name for name, passed in answers.items() if not passed)
        yield f"verdict is 'pass', and these did not pass: {missed}"
    if report["verdict"] == "fail" and all(answers.values()):
        yield "verdict is 'fail', and every question passed"
    sizes = report["sizes"]
    ratio = sizes["model_bytes"] / sizes["original_bytes"]
    if not math.isclose(sizes["ratio"], ratio, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        yield f"sizes.ratio is {sizes['ratio']}, its bytes say {ratio:.4f}"
    yield from _misattributed(report["ledger"])
    if latency := report["latency"]:
        yield from _misclocked(latency, report["slower"])
    elif report["slower"]:
        yield "slower is true, and no latency was measured"
    if "cautions" in report:
        stated = [caution["code"] for caution in report["cautions"]]
        due = [caution["code"] for caution in cautions(report)]
        if stated != due:
            yield f"cautions are {stated}, its figures say {due}"


def _misjudged(question: str, gate: Mapping[str, Any]) -> Iterator[str]:
    """A gate marked otherwise than its own measured value and bound say."""
    measured, bound, passed = gate["measured"], gate["bound"], gate["passed"]
    # A gate that allows one miss among few samples says so in its note.
    if measured is None or (passed and gate.get("note")):
        return
    slack = _ROUNDING * abs(bound)
    wrong = {
        "at-least": measured < bound - slack if passed else measured > bound + slack,
        "at-most": measured > bound + slack if passed else measured < bound - slack,
        "equal": (measured == bound) != passed,
        None: False,
    }[relation(gate)]
    if wrong:
        said = "passed" if passed else "missed"
        yield f"{question}: the gate {gate['name']} is {said} at {measured}, its bound is {bound}"


def _misattributed(ledger: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A change that is not the difference of what two passes left, a missed gate that passed."""
    before: Mapping[str, Any] | None = None
    for record in ledger:
        measured = record.get("measured")
        if not measured:
            continue
        name, change = record["stage"], measured["change"]
        if (change is None) != (before is None):
            yield f"{name}: change is {change}, and it is {'not ' * bool(before)}the first measured"
        elif change and before:
            for key in ("bytes", "parameters"):
                was, now = before[key], record[key]
                if change[key] != now - was:
                    yield f"{name}: change.{key} is {change[key]}, and {was} became {now}"
        if any(gate["passed"] for gate in measured["missed"]):
            yield f"{name}: a gate that passed is among those missed"
        before = record


def _misclocked(latency: Mapping[str, Any], slower: bool) -> Iterator[str]:
    ratio = latency["original"]["p50"] / latency["model"]["p50"]
    # Both medians and their ratio may be rounded, the medians to a hundredth of a millisecond.
    if not math.isclose(latency["ratio"], ratio, rel_tol=0.02):
        yield f"latency.ratio is {latency['ratio']}, its medians say {ratio:.3f}"
    if ratio > 1 + NOISE if slower else ratio < 1 - NOISE:
        yield f"slower is {slower}, the medians' ratio is {ratio:.3f}"
