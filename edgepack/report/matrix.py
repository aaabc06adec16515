"""One bundle on several devices, as a table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepack.report.figures import fit, plural, printable, snr_text
from edgepack.report.findings import worst
from edgepack.report.gates import describe_gate, gate_row

QUESTIONS = ("fidelity", "quality")


def render_matrix(matrix: Mapping[str, Any], console: Console) -> None:
    """Print a row for each device, then what was missed and what could not run.

    Args:
        matrix: as `edgepack.device.verify` gives it.
        console: foreign text is printed literally on it.
    """

    def text(value: str, style: str = "") -> Text:
        return Text(fit(printable(value), console.encoding), style=style)

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in ("device", "integrity", *QUESTIONS, "verdict"):
        table.add_column(title)
    remarks = []
    for column in matrix["devices"]:
        name = f"{column['name']}{' (emulated)' if column['emulated'] else ''}"
        if "error" in column:
            table.add_row(text(name), "", "", "", text("could not run", "bold red"))
            remarks += _told(column["name"], column["error"])
            continue
        verdict = column["verdict"]
        passed = verdict["passed"]
        table.add_row(
            text(name),
            text(f"✓ {plural(verdict['integrity']['files'], 'file')}", "green"),
            *(text(*_answer(verdict[question])) for question in QUESTIONS),
            text("✓ PASS" if passed else "✗ FAIL", "bold green" if passed else "bold red"),
        )
        remarks += [
            f"{column['name']}, {question}: {describe_gate(gate)}"
            for question in QUESTIONS
            for gate in (verdict[question] or {}).get("gates", ())
            if not gate["passed"] and gate_row(gate).decisive
        ]
    console.print(table)
    for remark in remarks:
        for line in remark.splitlines():
            console.print(text(line), soft_wrap=True)


def _told(name: str, error: Mapping[str, str]) -> list[str]:
    """Why a bundle could not run on a device, line by line."""
    # Most of what goes wrong on the way to a device names it.
    subject = "" if name in error["what"] else f"{name}: "
    lines = [line for part in ("why", "hint") for line in error[part].splitlines()]
    return [f"{subject}error[{error['code']}]: {error['what']}", *(f"  {line}" for line in lines)]


def _answer(question: Mapping[str, Any] | None) -> tuple[str, str]:
    """What one question found, in a word, and its style."""
    if question is None:
        return "not asked", "dim"
    mark, style = ("✓", "green") if question["passed"] else ("✗", "red")
    outputs = question["outputs"]
    if all(metrics["bit_exact"] for metrics in outputs.values()):
        return f"{mark} bit-exact", style
    metrics = worst(outputs)
    return f"{mark} {snr_text(metrics) if metrics else ''}".strip(), style
