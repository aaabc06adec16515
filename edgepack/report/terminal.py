"""The report on a terminal: what was proved, what it cost, what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgepack.report import findings
from edgepack.report.cautions import disturbed
from edgepack.report.figures import (
    bytes_text,
    fit,
    ms_text,
    plural,
    printable,
    seconds_text,
    snr_text,
)
from edgepack.report.gates import GateRow, gate_row
from edgepack.report.passes import Table as Chain
from edgepack.report.passes import passes

_VERDICT = {
    "pass": ("✓", "bold green"),
    "fail": ("✗", "bold red"),
    "unproven": ("▲", "bold black on yellow"),
}
# Of a bundle that passed, and is slower or larger than what was given.
_CAUTIOUS = ("▲", "bold black on yellow")
_STATUS = {"done": "", "cached": "dim", "skipped": "dim", "failed": "red"}
# Below this many columns tables give up what can be read elsewhere.
_NARROW = 64
# Of the chain's columns those that remain then.
_FEW = ("bytes", "metric", "snr")
_MAX_GATES = 6
_MAX_WARNINGS = 3


def render_terminal(report: Mapping[str, Any], console: Console) -> None:
    """Print a summary of a valid report: some 35 lines at 80 columns.

    Foreign text (names, notes, warnings) is printed literally: neither as rich's markup nor as
    escape sequences. Signs become ASCII where the console's encoding lacks them.
    """
    _Summary(report, console).show()


class _Summary:
    def __init__(self, report: Mapping[str, Any], console: Console) -> None:
        self.report = report
        self.console = console
        self.narrow = console.width < _NARROW
        self.chain = passes(report)

    def show(self) -> None:
        self._verdict()
        self.console.print()
        self._answers()
        self.console.print()
        if self.chain:
            self._passes(self.chain)
            if forms := findings.forms(self.report):
                self._indented(self.text(forms))
            self.console.print()
        self._ledger()
        self._warnings()
        self.console.print()
        self._next()

    def text(self, value: str, style: str = "") -> Text:
        """Literal text, in characters that this console has."""
        return Text(fit(printable(value), self.console.encoding), style=style)

    def _verdict(self) -> None:
        report = self.report
        mark, style = _VERDICT[report["verdict"]]
        if report.get("cautions") and report["verdict"] == "pass":
            mark, style = _CAUTIOUS
        title = f" {mark} {findings.title(report)} "
        head = self.text(f"  {report['name']} → {report['target']['name']}", "bold")
        self.console.print(Text.assemble(self.text(title, style), head))
        self._indented(self.text(findings.verdict(report)))
        if report["verdict"] != "pass":
            for caution in report.get("cautions", ()):
                self._indented(self.text(f"It is {caution['text']}.", "yellow"))
        failed = report["verdict"] == "fail" and not report["quality"]["passed"]
        if failed and (loss := findings.first_loss(report["ledger"])):
            self._indented(self.text(f"First loss at {loss}.", "red"))

    def _indented(self, text: Text) -> None:
        self.console.print(Padding(text, (0, 0, 0, 2), expand=False))

    def _answers(self) -> None:
        """Costs and gates in one table: what, figure, and what to hold it against."""
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        for label, value, remark in self._costs():
            self._row(table, label, self.text(value, "bold"), remark)
        several = len(self.report["outputs"]) > 1
        for name in findings.QUESTIONS:
            rows = sorted(map(gate_row, self.report[name]["gates"]), key=lambda row: row.passed)
            for place, row in enumerate(rows[:_MAX_GATES]):
                self._row(table, "" if place else name, *self._gate(row, several))
            if len(rows) > _MAX_GATES:
                more = f"and {plural(len(rows) - _MAX_GATES, 'more gate')}"
                self._row(table, "", self.text(more, "dim"), Text())
            if not rows:
                self._row(table, name, self.text("no gate was set", "yellow"), Text())
        for found in findings.on_cpus(self.report):
            mark, style = ("✓ ", "green") if found.passed else ("✗ ", "red")
            what = Text.assemble(self.text(mark, style), self.text(f"{found.cpu}, emulated"))
            self._row(table, "", what, self.text(found.answer, "bold"))
        self.console.print(table)

    def _row(self, table: Table, label: str, figure: Text, remark: Text) -> None:
        start = self.text(f"  {label}", "dim")
        if self.narrow:
            table.add_row(start, Text.assemble(figure, "  ", remark))
        else:
            table.add_row(start, figure, remark)

    def _costs(self) -> Iterator[tuple[str, str, Text]]:
        sizes, latency = self.report["sizes"], self.report["latency"]
        change = f"{bytes_text(sizes['original_bytes'])} → {bytes_text(sizes['model_bytes'])}"
        yield "size", change, self.text(findings.size(self.report))
        if latency:
            original, model = latency["original"]["p50"], latency["model"]["p50"]
            speed = self.text(
                findings.speed(self.report), "bold yellow" if self.report["slower"] else ""
            )
            if p90 := latency["model"].get("p90"):
                speed.append_text(self.text(f", p90 {ms_text(p90)}"))
            about = "about " if disturbed(self.report) else ""
            yield "latency", f"{about}{ms_text(original)} → {ms_text(model)}", speed
        else:
            yield "latency", "not measured", Text()
        if peak := self.report["memory"]["peak_rss_bytes"]:
            here = " on the build host" if self.report.get("stands_in") else ""
            yield "memory", bytes_text(peak), self.text(f"peak of the loader's process{here}")

    def _gate(self, row: GateRow, several: bool) -> tuple[Text, Text]:
        style = "green" if row.passed else "red" if row.decisive else "yellow"
        label = f"{row.label} of {row.output}" if several and row.output else row.label
        what = Text.assemble(self.text("✓ " if row.passed else "✗ ", style), self.text(label))
        found = Text.assemble(
            self.text(row.measured, "bold" if row.passed else f"bold {style}"),
            self.text(f"  {row.bound}", "dim"),
        )
        remarks = ["" if row.decisive else "not decisive", row.note]
        if not self.narrow and any(remarks):
            found.append_text(self.text("  " + ", ".join(filter(None, remarks)), "dim"))
        return what, found

    def _passes(self, chain: Chain) -> None:
        """What every pass left, and below each figure what it changed."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("  after")
        keys = [key for key in chain.columns if not self.narrow or key in _FEW]
        for key in keys:
            name = chain.columns[key]
            # MACs and SNR stay as they are.
            small = name.lower() if name == name.capitalize() else name
            table.add_column(self.text(small), justify="right")
        for row in chain.rows:
            cells = [
                Text.assemble(
                    self.text(cell.text, "red" if cell.missed else ""),
                    "\n" if cell.change else "",
                    self.text(cell.change, "dim"),
                )
                for cell in (row.cells[key] for key in keys)
            ]
            table.add_row(self.text(f"  {row.name}"), *cells)
        self.console.print(table)
        for remark in chain.remarks:
            self._indented(self.text(remark))

    def _ledger(self) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("  stage")
        table.add_column("status")
        table.add_column("time", justify="right")
        # What the passes left stands above, on more samples than these.
        if not self.narrow and not self.chain:
            table.add_column("size", justify="right")
        if not self.chain:
            table.add_column("SNR after", justify="right")
        for record in self.report["ledger"]:
            table.add_row(*self._record(record), style=_STATUS[record["status"]])
        self.console.print(table)

    def _record(self, record: Mapping[str, Any]) -> Iterator[Text]:
        yield self.text(f"  {record['stage']}")
        yield self.text(record["status"])
        yield self.text(seconds_text(record["seconds"]) if record["status"] != "skipped" else "")
        if self.chain:
            return
        if not self.narrow:
            yield self.text(bytes_text(record["bytes"]))
        metrics = findings.worst(record["parity"] or {})
        yield self.text(snr_text(metrics) if metrics else "")

    def _warnings(self) -> None:
        warnings = self.report["warnings"]
        if not warnings:
            return
        self.console.print()
        grid = Table.grid(padding=(0, 1))
        for warning in warnings[:_MAX_WARNINGS]:
            grid.add_row(Text("  !", style="bold yellow"), self.text(warning))
        if len(warnings) > _MAX_WARNINGS:
            more = f"and {plural(len(warnings) - _MAX_WARNINGS, 'more warning')} in the report"
            grid.add_row(Text(), self.text(more, "dim"))
        self.console.print(grid)

    def _next(self) -> None:
        commands = findings.next_commands(self.report)
        longest = max(len(command) for command, _ in commands)
        room = all(longest + len(purpose) + 6 <= self.console.width for _, purpose in commands)
        for command, purpose in commands:
            # A command is there to be copied: one unbroken line, never cut.
            line = Text.assemble("  ", self.text(command, "bold"))
            if room:
                line.pad_right(longest - len(command))
                line.append_text(self.text(f"  # {purpose}", "dim"))
            self.console.print(line, soft_wrap=True)
