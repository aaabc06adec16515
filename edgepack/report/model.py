"""Report document `edgepack-report/1`: its schema, encoding and consistency.

Readers trust a report without having seen the build, so it is checked twice before it is shown:
its shape against `report.schema.json`, and its statements against each other. A verdict that
contradicts its own gates is refused.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, cast

from edgepack.errors import EdgepackError
from edgepack.ledger import RecordDocument, read_measured
from edgepack.report.cautions import NOISE, list_cautions
from edgepack.report.documents import LatencySection, Report
from edgepack.report.findings import list_questions
from edgepack.report.gates import find_relation
from edgepack.runtime.documents import Gate
from edgepack.runtime.parity.verdict import FAIL, MISSED, PASS, UNVERIFIED

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

FORMAT = "edgepack-report/1"
# Listing more faults than this does not help.
_SHOWN = 8
# Figures may be stored rounded; a contradiction must exceed this.
_ROUNDING = 1e-3


class ReportError(EdgepackError):
    """Report that violates its schema or contradicts itself."""


@cache
def schema() -> Mapping[str, object]:
    """Return the JSON Schema (2020-12) of the report."""
    text = files("edgepack.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    document: dict[str, object] = json.loads(text)
    return document


@cache
def _validator() -> Validator:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry

    def number(_: object, value: object) -> bool:
        # Python's floats include NaN and infinity, which JSON lacks, and its integers may exceed
        # the largest float.
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )

    def integer(checker: object, value: object) -> bool:
        return number(checker, value) and int(value) == value  # type: ignore[call-overload]

    strict = extend(
        Draft202012Validator,
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
            {"number": number, "integer": integer}
        ),
    )
    # An empty registry retrieves nothing, so that validation never needs a network.
    validator: Validator = strict(schema(), registry=Registry())
    return validator


def encode(report: Report) -> bytes:
    """Encode the report as `report.json`: UTF-8, indented, with a final newline."""
    # Lone surrogates of a foreign text cannot be encoded; they are escaped.
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def validate(document: Mapping[str, object]) -> Report:
    """Return a document as a report, once its shape is right and its statements agree.

    Raises:
        ReportError: `report-invalid`, with the path of every invalid key, or
            `report-contradiction`, with the statements that contradict each other.
    """
    faults = list(map(_describe_error, _find_errors(document)))
    if faults:
        raise _refuse("report-invalid", f"the report does not match the format {FORMAT}", faults)
    report = cast("Report", document)
    faults = list(_find_contradictions(report))
    if faults:
        raise _refuse("report-contradiction", "the report contradicts itself", faults)
    return report


def _find_errors(report: Mapping[str, object]) -> Iterator[ValidationError]:
    """Yield the schema's errors; of several allowed forms, the error inside the closest."""
    from jsonschema.exceptions import best_match

    for error in sorted(_validator().iter_errors(report), key=lambda e: list(map(str, e.path))):
        if error.context:
            yield best_match([error])
        else:
            yield error


def _describe_error(error: ValidationError) -> str:
    # "$.quality.passed" is "quality.passed" to a reader; "$" is the document.
    path = str(error.json_path).removeprefix("$").removeprefix(".") or "the report"
    return f"{path}: {error.message}"


def _shorten(fault: str) -> str:
    if len(fault) <= 300:
        return fault
    return fault[:299] + "…"


def _refuse(code: str, what: str, faults: list[str]) -> ReportError:
    shown = list(map(_shorten, faults[:_SHOWN]))
    if len(faults) > _SHOWN:
        shown.append(f"and {len(faults) - _SHOWN} more")
    return ReportError(
        code,
        what,
        why="\n".join(shown),
        hint="build the bundle again with this version of edgepack to write a new report",
    )


def _find_contradictions(report: Report) -> Iterator[str]:
    """Yield a sentence for every pair of statements that contradict each other."""
    yield from _check_answers(report)
    yield from _check_verdict(report)
    sizes = report["sizes"]
    ratio = sizes["model_bytes"] / sizes["original_bytes"]
    if not math.isclose(sizes["ratio"], ratio, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        yield f"sizes.ratio is {sizes['ratio']}, its bytes give {ratio:.4f}"
    yield from _check_changes(report["ledger"])
    if latency := report["latency"]:
        yield from _check_latency(latency, report["slower"])
    elif report["slower"]:
        yield "slower is true, but no latency was measured"
    # Older reports have no cautions.
    if "cautions" in report:
        listed = [caution["code"] for caution in report["cautions"]]
        expected = [caution["code"] for caution in list_cautions(report)]
        if listed != expected:
            yield f"cautions are {listed}, the figures give {expected}"


def _check_answers(report: Report) -> Iterator[str]:
    """Yield questions whose `passed` differs from their gates, and misjudged gates."""
    for name, question in list_questions(report):
        decisive = [gate for gate in question["gates"] if gate.get("decisive", True)]
        # Where nothing is gated, nothing passed.
        decided = bool(question["gates"]) and all(gate["passed"] for gate in decisive)
        if question["passed"] != decided:
            yield f"{name}.passed is {question['passed']}, its decisive gates give {decided}"
        for gate in question["gates"]:
            yield from _check_gate(name, gate)


def _check_verdict(report: Report) -> Iterator[str]:
    """Yield verdicts and answers that the questions below them do not support."""
    answers = {name: question["passed"] for name, question in list_questions(report)}
    for cpu, question in report.get("emulated", {}).items():
        if answers["fidelity"] and not question["passed"]:
            yield f"fidelity passed, but {cpu}, emulated, missed it"
    verdict = report["verdict"]
    if verdict != FAIL and not all(answers.values()):
        missed = ", ".join(name for name, passed in answers.items() if not passed)
        yield f"verdict is {verdict!r}, but these did not pass: {missed}"
    if verdict == FAIL and all(answers.values()):
        yield "verdict is 'FAIL', but every question passed"
    codes = [reason["code"] for reason in report["reasons"]]
    doubts = [code for code in codes if code != MISSED]
    if (verdict == PASS and codes) or (verdict == UNVERIFIED and codes != doubts):
        yield f"verdict is {verdict!r}, but its reasons are {codes}"
    if verdict != PASS and not codes:
        yield f"verdict is {verdict!r}, but it has no reasons"


def _check_gate(question: str, gate: Gate) -> Iterator[str]:
    """Yield a gate whose mark differs from its own measured value and bound."""
    measured, bound, passed = gate["measured"], gate["bound"], gate["passed"]
    # A gate that allows one miss among few samples says so in its note.
    if measured is None or (passed and gate.get("note")):
        return
    # 18.99 dB may be 19.0 dB, stored rounded, and have passed a gate of 19; 18.9 dB may not.
    slack = _ROUNDING * abs(bound)
    over, under = measured > bound + slack, measured < bound - slack
    if passed:
        wrong = {"at-least": under, "at-most": over, "equal": measured != bound}
    else:
        wrong = {"at-least": over, "at-most": under, "equal": measured == bound}
    # The relation of an unknown gate is None: its mark cannot be checked.
    if wrong.get(str(find_relation(gate))):
        mark = "passed" if passed else "missed"
        yield f"{question}: the gate {gate['name']} is {mark} at {measured}, its bound is {bound}"


def _check_changes(ledger: Sequence[RecordDocument]) -> Iterator[str]:
    """Yield changes that are not the difference of two passes, and missed gates that passed."""
    before: RecordDocument | None = None
    for record in ledger:
        measured = record.get("measured")
        if not measured:
            continue
        name, change = record["stage"], measured["change"]
        # Only the first measured record has nothing to differ from.
        if change is None and before is not None:
            yield f"{name}: change is {change}, but it is not the first measured"
        elif change is not None and before is None:
            yield f"{name}: change is {change}, but it is the first measured"
        elif change and before:
            yield from _check_change(record, before)
        if any(gate["passed"] for gate in measured["missed"]):
            yield f"{name}: a gate that passed is among those missed"
        before = record


def _check_change(record: RecordDocument, before: RecordDocument) -> Iterator[str]:
    change = read_measured(record)["change"]
    if change is None:
        return
    # These are counts and exact; the other changes are of measured values, which are rounded.
    for key in ("bytes", "parameters"):
        old, new = before[key], record[key]
        if change[key] != (new or 0) - (old or 0):
            yield f"{record['stage']}: change.{key} is {change[key]}, but {old} became {new}"


def _check_latency(latency: LatencySection, slower: bool) -> Iterator[str]:
    ratio = latency["original"]["p50"] / latency["model"]["p50"]
    # Both medians and their ratio may be rounded, the medians to a hundredth of a millisecond.
    if not math.isclose(latency["ratio"], ratio, rel_tol=0.02):
        yield f"latency.ratio is {latency['ratio']}, its medians give {ratio:.3f}"
    # Close to 1 either mark may be right.
    if (slower and ratio > 1 + NOISE) or (not slower and ratio < 1 - NOISE):
        yield f"slower is {slower}, but the medians' ratio is {ratio:.3f}"
