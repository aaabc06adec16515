"""Terminal table of the bundles that one command built, a row for each target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from edgepack.report.cautions import list_disturbances
from edgepack.report.documents import Report
from edgepack.report.figures import fit, format_bytes, format_ms, format_percent, printable

COLUMNS = ("target", "verdict", "size", "ratio", "latency", "path")
_STYLES = {"PASS": "bold green", "FAIL": "bold red", "UNVERIFIED": "bold yellow"}
FAILED = "could not run"


@dataclass(frozen=True)
class TargetRow:
    """Result of the build for one target.

    Attributes:
        target: name of the profile.
        report: of the bundle; None if the build could not run.
        path: of the bundle, or the rejected one.
        error: code of the error; "" for none.
    """

    target: str
    report: Report | None
    path: Path | None
    error: str = ""

    def list_cells(self) -> tuple[str, ...]:
        """Return the texts of the row: ("thor", "PASS", "1.2 MB", "27 %", "0.31 ms", ...)."""
        if self.report is None:
            return self.target, FAILED, "", "", "", f"error[{self.error}]"
        sizes, latency = self.report["sizes"], self.report["latency"]
        speed = "not measured"
        if latency:
            speed = format_ms(latency["model"]["p50"])
            if list_disturbances(self.report):
                speed = f"about {speed}"
        return (
            self.target,
            str(self.report["verdict"]),
            format_bytes(sizes["model_bytes"]),
            format_percent(sizes["ratio"]),
            speed,
            str(self.path),
        )


def render_targets(rows: Sequence[TargetRow], console: Console) -> None:
    """Print the table.

    Lines are as long as they need to be: a table of rich would cut paths at the terminal's width.
    """
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        lines.append(tuple(fit(printable(cell), console.encoding) for cell in row.list_cells()))
    # The longest cell of each column, its title included.
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, cells in enumerate(lines):
        text = Text(style="" if number else "dim")
        for title, cell, width in zip(COLUMNS, cells, widths, strict=True):
            style = ""
            if number and title == "verdict":
                style = _STYLES.get(cell, "bold red")
            text.append(cell.ljust(width), style=style)
            text.append("  ")
        text.rstrip()
        console.print(text, soft_wrap=True)
