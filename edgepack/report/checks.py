"""Checks of a build or a verification, in the forms that CI systems read.

JUnit's XML, a summary in Markdown, and annotations of GitHub Actions, all drawn from the same rows:
one for each gate, and one for the verdict of each device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from edgepack.report import findings
from edgepack.report.cautions import list_disturbances
from edgepack.report.documents import Report
from edgepack.report.figures import format_bytes, format_ms, printable
from edgepack.report.gates import describe_gate, format_gate
from edgepack.runtime.documents import Question, Reason, Verdict
from edgepack.runtime.errors import EdgepackError
from edgepack.runtime.parity.verdict import FAIL, PASS, UNVERIFIED

# Verdict of a command that could not run.
ERROR = "ERROR"
_SIGNS = {PASS: "✅", FAIL: "❌", UNVERIFIED: "⚠️", ERROR: "❌"}
# Characters with a meaning in Markdown.
_MARKS = frozenset("&<>|`[]\\*~#")
_QUESTIONS = ("preprocessing", "quality", "fidelity")


@dataclass(frozen=True)
class Check:
    """One gate, or the verdict of a device.

    Attributes:
        group: question and device, such as "fidelity on ssh://board".
        name: what was checked: "SNR of logits", or "verdict".
        result: PASS, FAIL, UNVERIFIED or ERROR.
        measured: measured value.
        bound: bound of the gate; "" for a verdict.
        text: everything in one line.
    """

    group: str
    name: str
    result: str
    measured: str
    bound: str
    text: str


@dataclass(frozen=True)
class Checks:
    """Checks of one command on one bundle.

    Attributes:
        title: name of the bundle and of its target.
        verdict: the worst verdict; ERROR if the command could not run.
        rows: gates and verdicts.
        facts: label and text of sizes, latencies and other figures.
        warnings: warnings of the build.
        allowed: true if UNVERIFIED is accepted.
        seconds: duration; 0 if it is unknown.
    """

    title: str
    verdict: str
    rows: Sequence[Check]
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    allowed: bool = False
    seconds: float = 0.0


def check_report(report: Report, allowed: bool = False) -> Checks:
    """Return the checks of a build.

    Args:
        report: its report.
        allowed: true if UNVERIFIED is accepted.
    """
    # A row for each gate, then one for the verdict: JUnit shows them as test cases.
    questions = {name: report.get(name) for name in _QUESTIONS}
    rows = [*_list_gates(questions, ""), _check_verdict("", report["verdict"], report["reasons"])]
    sizes, bundle = report["sizes"], report["bundle"]
    facts = [
        ("Model", f"{format_bytes(sizes['model_bytes'])}, {findings.describe_size(report)}"),
        ("Bundle file", format_bytes(bundle["bytes"])),
    ]
    if latency := report["latency"]:
        p50 = format_ms(latency["model"]["p50"])
        if list_disturbances(report):
            p50 = f"about {p50}"
        facts.append(("Latency, p50", f"{p50}; {findings.describe_speed(report)}"))
    if report["quality"]["metric"]:
        facts.append(("Metric", findings.describe_metric(report["quality"])))
    for caution in report.get("cautions", ()):
        facts.append(("Caution", caution["text"]))
    return Checks(
        title=f"{report['name']} for {report['target']['name']}",
        verdict=report["verdict"],
        rows=rows,
        facts=facts,
        warnings=report["warnings"],
        allowed=allowed,
        seconds=report.get("build", {"seconds": 0.0})["seconds"],
    )


def check_devices(
    title: str, columns: Sequence[Mapping[str, Any]], verdict: str | None, allowed: bool = False
) -> Checks:
    """Return the checks of `verify`.

    Args:
        title: name of the bundle and of its target.
        columns: devices, each with its verdict or its error.
        verdict: the verdict on all of them; None if one could not run.
        allowed: true if UNVERIFIED is accepted.
    """
    rows: list[Check] = []
    for column in columns:
        device = f" on {column['name']}"
        if "error" in column:
            error = column["error"]
            text = f"error[{error['code']}]: {error['what']}: {error['why']}"
            rows.append(Check(f"verdict{device}", "verdict", ERROR, ERROR, "", text))
            continue
        document: Verdict = column["verdict"]
        questions = {name: document.get(name) for name in _QUESTIONS}
        rows += _list_gates(questions, device)
        rows.append(_check_verdict(device, document["verdict"], document["reasons"]))
    return Checks(title, verdict or ERROR, rows, allowed=allowed)


def check_error(title: str, error: EdgepackError) -> Checks:
    """Return the checks of a command that could not run."""
    row = Check("verdict", "verdict", ERROR, ERROR, "", str(error))
    return Checks(title, ERROR, [row])


def _list_gates(questions: Mapping[str, object], device: str) -> Iterator[Check]:
    for name, question in questions.items():
        if question is None:
            continue
        answer: Question = question  # type: ignore[assignment]
        group = name + (device or _name_device(answer))
        for gate in answer["gates"]:
            row = format_gate(gate)
            result = FAIL
            if row.passed or not row.decisive:
                result = PASS
            yield Check(group, row.title, result, row.measured, row.bound, describe_gate(gate))


def _name_device(question: Question) -> str:
    if "device" in question:
        return f" on {question['device']}"
    return ""


def _check_verdict(device: str, verdict: str, reasons: Sequence[Reason]) -> Check:
    text = verdict
    if reasons:
        text += ": " + "; ".join(reason["text"] for reason in reasons)
    return Check(f"verdict{device}", "verdict", verdict, verdict, "", text)


def render_junit(*commands: Checks) -> bytes:
    """Render checks as JUnit's XML: a suite for each target, a case for each gate and verdict."""
    root = ElementTree.Element("testsuites", {"name": "edgepack"})
    for checks in commands:
        suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(checks.title)})
        for row in checks.rows:
            _add_case(suite, row, checks)
        _set_counts(suite, checks.seconds)
    _set_counts(root, sum(checks.seconds for checks in commands))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _add_case(suite: ElementTree.Element, row: Check, checks: Checks) -> None:
    names = {"classname": _clean(f"{checks.title}.{row.group}"), "name": _clean(row.name)}
    case = ElementTree.SubElement(suite, "testcase", names)
    if row.result == ERROR:
        tag = "error"
    elif row.result == UNVERIFIED and checks.allowed:
        tag = "skipped"
    elif row.result != PASS:
        tag = "failure"
    else:
        return
    first, *rest = _clean(row.text).split("\n")
    outcome = ElementTree.SubElement(case, tag, {"type": row.result, "message": first})
    outcome.text = "\n".join(rest)


def _set_counts(element: ElementTree.Element, seconds: float) -> None:
    """Set the numbers of cases and of their outcomes below an element."""
    tags = {"testcase": "tests", "failure": "failures", "error": "errors", "skipped": "skipped"}
    for tag, name in tags.items():
        element.set(name, str(sum(1 for _ in element.iter(tag))))
    element.set("time", f"{seconds:.3f}")


def _clean(text: str) -> str:
    # XML has no control characters but these; `printable` escapes the others. Nor has it U+FFFE and
    # U+FFFF, which are no characters.
    lines = "\n".join(printable(line) for line in text.splitlines())
    return lines.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def render_summary(checks: Checks) -> str:
    """Render checks in Markdown, as the summary of a job: the verdict, figures and gates."""
    lines = [f"### {_SIGNS[checks.verdict]} {checks.verdict}: {_escape_line(checks.title)}", ""]
    for row in checks.rows:
        if row.name == "verdict" and row.result != PASS:
            lines += [*_escape(row.text).split("\n"), ""]
    if checks.facts:
        lines += ["| | |", "|---|---|"]
        lines += [f"| {label} | {_escape_line(text)} |" for label, text in checks.facts]
        lines.append("")
    gates = [row for row in checks.rows if row.name != "verdict"]
    if gates:
        lines += ["| | gate | measured | bound |", "|---|---|---|---|"]
    for row in gates:
        cells = [row.group + ": " + row.name, row.measured, row.bound]
        lines.append(f"| {_SIGNS[row.result]} | {' | '.join(map(_escape_line, cells))} |")
    if checks.warnings:
        lines += ["", *(f"- ⚠️ {_escape_line(warning)}" for warning in checks.warnings)]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    # A name with a pipe would end its cell, one with "<" begin a tag, "![](" a picture from another
    # site. An entity is never a mark: "[a](b)" becomes "&#91;a&#93;(b)".
    return "".join(f"&#{ord(char)};" if char in _MARKS else char for char in _clean(text))


def _escape_line(text: str) -> str:
    return _escape(text).replace("\n", " ")


def annotate(checks: Checks) -> list[str]:
    """Return the workflow commands that annotate a job of GitHub Actions.

    Missed gates and errors are `::error`, warnings and an accepted UNVERIFIED `::warning`.
    """
    lines = []
    for row in checks.rows:
        if row.result == PASS:
            continue
        level = "error"
        if row.result == UNVERIFIED and checks.allowed:
            level = "warning"
        # The verdict of a failure repeats its gates.
        if row.name != "verdict" or row.result != FAIL:
            lines.append(_format_annotation(level, f"{checks.title}: {row.group}", row.text))
    for warning in checks.warnings:
        lines.append(_format_annotation("warning", checks.title, warning))
    return lines


def _format_annotation(level: str, title: str, text: str) -> str:
    # A workflow command ends with its line, and a property with a comma or a colon.
    data = _clean(text).replace("%", "%25").replace("\n", "%0A")
    name = _clean(title).replace("%", "%25").replace("\n", " ")
    name = name.replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{data}"
