"""Report as a card for a notebook, and as a few lines of text for `repr`."""

from __future__ import annotations

from html import escape

from edgepack.report import findings
from edgepack.report.documents import Report
from edgepack.report.figures import format_bytes, format_plural, printable
from edgepack.report.gates import GateRow
from edgepack.runtime.parity.verdict import FAIL, PASS

_COLOURS = {PASS: "#1a7f37", FAIL: "#cf222e"}
_UNVERIFIED = "#9a6700"
# Gates on a card: the missed ones first.
_MAX_GATES = 4
_STYLE = (
    "font: 13px/1.5 system-ui, sans-serif; border: 1px solid #8884; border-radius: 6px; "
    "padding: 10px 14px; max-width: 40em; display: inline-block"
)


def render_card(report: Report) -> str:
    """Render a valid report as a small piece of HTML, without scripts, links or style sheets."""
    colour = _COLOURS.get(report["verdict"], _UNVERIFIED)
    badge = f"background: {colour}; color: #fff; border-radius: 4px; padding: 1px 8px"
    rows = []
    for label, text in list_facts(report):
        rows.append(
            f'<tr><td style="padding: 1px 14px 1px 0; opacity: .7; text-align: left">'
            f'{_escape(label)}</td><td style="padding: 1px 0; text-align: left">'
            f"{_escape(text)}</td></tr>"
        )
    name = f"{report['name']} → {report['target']['name']}"
    return (
        f'<div style="{_STYLE}"><div><b style="{badge}">{_escape(findings.format_title(report))}'
        f"</b> <b>{_escape(name)}</b></div>"
        f'<p style="margin: 6px 0">{_escape(findings.describe_verdict(report))}</p>'
        f'<table style="border-collapse: collapse; font: inherit">{"".join(rows)}</table></div>'
    )


def list_facts(report: Report) -> list[tuple[str, str]]:
    """Return size, speed and the gates with the worst numbers, as labels and texts."""
    size = format_bytes(report["bundle"]["model_bytes"])
    facts = [("model", f"{size}, {findings.describe_size(report)}")]
    if whole := report["bundle"]["bytes"]:
        facts.append(("bundle", format_bytes(whole)))
    facts.append(("speed", findings.describe_speed(report) or "not measured"))
    rows = sorted(findings.list_gates(report), key=lambda row: row.passed)
    for row in rows[:_MAX_GATES]:
        facts.append(_describe_gate(row))
    if len(rows) > _MAX_GATES:
        facts.append(("", f"and {format_plural(len(rows) - _MAX_GATES, 'more gate')}"))
    return facts


def _describe_gate(row: GateRow) -> tuple[str, str]:
    mark = "✓" if row.passed else "✗"
    label = f"{row.label} of {row.output}" if row.output else row.label
    return f"{mark} {label}", f"{row.measured} ({row.bound})"


def _escape(text: str) -> str:
    # Names and notes are foreign text: neither markup nor control characters get through.
    return escape(printable(text))
