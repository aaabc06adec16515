"""Comparison as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepack.comparison.compare import Comparison
from edgepack.comparison.rows import Row
from edgepack.report.figures import fit, format_plural, printable


def _select_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows to show: of the gates only those that changed, and a count of the others."""
    shown, steady = [], 0
    for row in rows:
        if row.kind == "gate" and not row.regressed and not row.change and row.held:
            steady += 1
        else:
            shown.append(row)
    if steady:
        passed = f"{format_plural(steady, 'gate')} passed"
        shown.append(Row("gates", "in both", passed, passed, ""))
    return shown


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print a row for each figure, then the notes and the result.

    Args:
        comparison: the comparison.
        console: foreign text is printed on it literally.
    """

    def text(value: str, style: str = "") -> Text:
        return Text(fit(printable(value), console.encoding), style=style)

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in ("", "", "old", "new", "change"):
        table.add_column(title)
    kind = ""
    for row in _select_rows(comparison.rows):
        style = "bold red" if row.regressed else ""
        mark = "✗ " if row.regressed else ""
        label = row.kind if row.kind != kind else ""
        kind = row.kind
        cells = (row.name, row.old, row.new, mark + row.change)
        table.add_row(text(label, "dim"), *(text(cell, style) for cell in cells))
    console.print(table)
    for note in comparison.notes:
        console.print(text(f"note: {note}"), soft_wrap=True)
    regressions = comparison.regressions
    if regressions:
        console.print(text(f"✗ {format_plural(len(regressions), 'regression')}", "bold red"))
    else:
        console.print(text("✓ no regression", "bold green"))
