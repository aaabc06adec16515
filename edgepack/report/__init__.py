"""Reports and verdicts as JSON, on the terminal and as an HTML page.

The renderers are imported inside the functions that use them: rich and Jinja take longer to
import than `--help` may take to print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgepack.report.cautions import list_cautions
from edgepack.report.gates import describe_gate
from edgepack.report.model import FORMAT, ReportError, encode, validate

if TYPE_CHECKING:
    from rich.console import Console

    from edgepack.report.documents import Report
    from edgepack.report.targets import TargetRow


def render_html(report: Report) -> str:
    """Render a valid report as one self-contained page."""
    from edgepack.report.html import render_html as render

    return render(report)


def render_terminal(report: Report, console: Console, repeat: str = "") -> None:
    """Print a summary of a valid report: about 30 lines at 80 columns."""
    from edgepack.report.terminal import render_terminal as render

    render(report, console, repeat)


def render_matrix(matrix: Mapping[str, Any], console: Console) -> None:
    """Print the verdicts of several devices on one bundle, a row for each."""
    from edgepack.report.matrix import render_matrix as render

    render(matrix, console)


def render_instructions(document: Mapping[str, Any], console: Console) -> None:
    """Print the instruction counts of a bundle on emulated CPUs, a table for each CPU."""
    from edgepack.report.instructions import render_instructions as render

    render(document, console)


def render_targets(rows: Sequence[TargetRow], console: Console) -> None:
    """Print the results of one command for several targets, a row for each."""
    from edgepack.report.targets import render_targets as render

    render(rows, console)


__all__ = [
    "FORMAT",
    "ReportError",
    "describe_gate",
    "encode",
    "list_cautions",
    "render_html",
    "render_instructions",
    "render_matrix",
    "render_targets",
    "render_terminal",
    "validate",
]
