"""Terminal table of one bundle's verdicts on several devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepack.report.figures import fit, format_mark, format_plural, printable
from edgepack.report.findings import format_worst
from edgepack.report.gates import describe_gate, format_gate
from edgepack.runtime.documents import Question, Verdict
from edgepack.runtime.parity.verdict import MISSED, PASS, UNVERIFIED
from edgepack.runtime.session.placement import describe_placement

QUESTIONS: tuple[Literal["fidelity", "quality"], ...] = ("fidelity", "quality")
# Bundles that take arrays have no such question, nor have those of earlier releases.
PREPROCESSING: Literal["preprocessing"] = "preprocessing"


def render_matrix(matrix: Mapping[str, Any], console: Console) -> None:
    """Print a row for each device, then missed gates and errors.

    Args:
        matrix: result of `edgepack.device.verify`.
        console: foreign text is printed on it literally.
    """

    def text(value: str, style: str = "") -> Text:
        return Text(fit(printable(value), console.encoding), style=style)

    prepares = any(column.get("verdict", {}).get(PREPROCESSING) for column in matrix["devices"])
    questions = (PREPROCESSING, *QUESTIONS) if prepares else QUESTIONS
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in ("device", "integrity", *questions, "verdict"):
        table.add_column(title)
    remarks: list[str] = []
    for column in matrix["devices"]:
        name = column["name"]
        label = name
        if column["emulated"]:
            label += " (emulated)"
        if "error" in column:
            blanks = [""] * (1 + len(questions))
            table.add_row(text(label), *blanks, text("could not run", "bold red"))
            remarks += _describe_error(name, column["error"])
            continue
        verdict = column["verdict"]
        # The word says it in a copy of the text, which loses the colour.
        word = verdict["verdict"]
        mark, style = format_mark(word == PASS)
        if word == UNVERIFIED:
            mark, style = "▲", "yellow"
        table.add_row(
            text(label),
            text(f"✓ {format_plural(verdict['integrity']['files'], 'file')}", "green"),
            *(text(*_format_answer(verdict.get(question))) for question in questions),
            text(f"{mark} {word}", f"bold {style}"),
        )
        remarks += _describe_misses(name, verdict)
        # The lines above name the gates that a FAIL missed.
        for reason in verdict["reasons"]:
            if reason["code"] != MISSED:
                remarks.append(f"{name}, {word}: {reason['text']}")
    console.print(table)
    for remark in remarks:
        for line in remark.splitlines():
            console.print(text(line), soft_wrap=True)


def _describe_misses(name: str, verdict: Verdict) -> Iterator[str]:
    """Yield a line for every decisive gate that a device missed."""
    for question in (PREPROCESSING, *QUESTIONS):
        answer = verdict.get(question)
        # Quality is not judged on a bundle without the original's answers.
        if answer is None:
            continue
        for gate in answer["gates"]:
            if not gate["passed"] and format_gate(gate).decisive:
                yield f"{name}, {question}: {describe_gate(gate)}"
    # A provider that leaves a part of the model to the CPU is named even if it passes.
    placement = verdict.get("placement")
    if placement is not None:
        for line in describe_placement(placement):
            yield f"{name}, {line.strip()}"


def _describe_error(name: str, error: Mapping[str, str]) -> list[str]:
    """Return the lines of the error that kept a bundle from running on a device."""
    first = f"error[{error['code']}]: {error['what']}"
    # Most errors of a connection name the device already.
    if name not in error["what"]:
        first = f"{name}: {first}"
    lines = [first]
    for line in (*error["why"].splitlines(), *error["hint"].splitlines()):
        lines.append(f"  {line}")
    return lines


def _format_answer(question: Question | None) -> tuple[str, str]:
    """Return the answer to one question and its style: ("✓ bit-exact", "green")."""
    if question is None:
        return "not judged", "dim"
    mark, style = format_mark(question["passed"])
    outputs = question["outputs"]
    # Preprocessing has no outputs, and is judged by its gates.
    if not outputs and any(gate["name"] != "bit_exact" for gate in question["gates"]):
        return mark, style
    if all(metrics["bit_exact"] for metrics in outputs.values()):
        return f"{mark} bit-exact", style
    return f"{mark} {format_worst(outputs)}".strip(), style
