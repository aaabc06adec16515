"""Report on a terminal: the verdict, sizes and latencies, the gates, the next commands."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgepack.ledger import RecordDocument
from edgepack.report import findings
from edgepack.report.auction import AuctionTable, tabulate_auction
from edgepack.report.cautions import list_disturbances
from edgepack.report.documents import LatencySection, Report
from edgepack.report.figures import (
    fit,
    format_bytes,
    format_mark,
    format_ms,
    format_plural,
    format_seconds,
    printable,
)
from edgepack.report.gates import GateRow, format_gate
from edgepack.report.passes import Cell, tabulate_passes
from edgepack.report.passes import Table as Chain
from edgepack.runtime.documents import Question
from edgepack.runtime.parity.verdict import FAIL, PASS, UNVERIFIED

_VERDICT = {
    PASS: ("✓", "bold green"),
    FAIL: ("✗", "bold red"),
    UNVERIFIED: ("▲", "bold black on yellow"),
}
# Mark of a bundle that passed with cautions: slower or larger than the model file.
_CAUTIOUS = ("▲", "bold black on yellow")
_STATUS = {"done": "", "cached": "dim", "skipped": "dim", "failed": "red"}
# Below this width tables leave out columns that the page has.
_NARROW = 64
# The chain's columns on such a narrow terminal.
_FEW = ("bytes", "metric", "snr")
# From so many columns on, a terminal below this width leaves out the counts.
_MOST, _WIDE = 6, 100
_COUNTS = ("parameters", "macs")
_MAX_GATES = 6
_MAX_WARNINGS = 3


def render_terminal(report: Report, console: Console, repeat: str = "") -> None:
    """Print a summary of a valid report: about 35 lines at 80 columns.

    Foreign text (names, notes, warnings) is printed literally, neither as rich's markup nor as
    escape sequences. Signs become ASCII if the console's encoding lacks them.

    Args:
        report: the report.
        console: the console.
        repeat: the command that builds the bundle on real samples; "" for a general one.
    """
    _Summary(report, console, repeat).show()


class _Summary:
    """Summary of one report on one console."""

    def __init__(self, report: Report, console: Console, repeat: str) -> None:
        self.report = report
        self.repeat = repeat
        self.console = console
        self.narrow = console.width < _NARROW
        self.chain = tabulate_passes(report)
        self.auction = tabulate_auction(report)

    def show(self) -> None:
        """Print every section."""
        self._print_verdict()
        self.console.print()
        self._print_answers()
        self.console.print()
        if self.chain:
            self._print_passes(self.chain)
            if forms := findings.describe_forms(self.report):
                self._print_indented(self.text(forms))
            self.console.print()
        if self.auction:
            self._print_auction(self.auction)
            self.console.print()
        self._print_ledger()
        self._print_warnings()
        self.console.print()
        self._print_next_commands()

    def text(self, value: str, style: str = "") -> Text:
        """Return literal text in the characters of this console's encoding."""
        return Text(fit(printable(value), self.console.encoding), style=style)

    def _print_verdict(self) -> None:
        report = self.report
        mark, style = _VERDICT[report["verdict"]]
        if report.get("cautions") and report["verdict"] == PASS:
            mark, style = _CAUTIOUS
        title = f" {mark} {findings.format_title(report)} "
        head = self.text(f"  {report['name']} → {report['target']['name']}", "bold")
        self.console.print(Text.assemble(self.text(title, style), head))
        self._print_indented(self.text(findings.describe_verdict(report)))
        if report["verdict"] != PASS:
            for caution in report.get("cautions", ()):
                self._print_indented(self.text(f"It is {caution['text']}.", "yellow"))
        # A stage of the build can only explain a loss of quality, not of fidelity.
        failed = report["verdict"] == FAIL and not report["quality"]["passed"]
        if failed and (loss := findings.find_first_loss(report["ledger"])):
            self._print_indented(self.text(f"First loss at {loss}.", "red"))

    def _print_indented(self, text: Text) -> None:
        self.console.print(Padding(text, (0, 0, 0, 2), expand=False))

    def _print_answers(self) -> None:
        """Print costs and gates in one table: label, figure and bound or remark."""
        # One table, so that the figures of costs and gates share their columns.
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        for label, value, remark in self._costs():
            self._add_row(table, label, self.text(value, "bold"), remark)
        for name, question in findings.list_questions(self.report):
            self._add_question(table, name, question)
        for answer in findings.list_emulated(self.report):
            mark, style = format_mark(answer.passed)
            cpu = Text.assemble(self.text(f"{mark} ", style), self.text(f"{answer.cpu}, emulated"))
            self._add_row(table, "", cpu, self.text(answer.answer, "bold"))
        self.console.print(table)
        for name, result, passed in findings.list_variants(self.report):
            mark, style = format_mark(passed)
            line = Text.assemble(self.text(f"{mark} ", style), self.text(f"{name}: {result}"))
            self._print_indented(line)

    def _add_question(self, table: Table, name: str, question: Question) -> None:
        """Add the gates of one question, the missed ones first; later rows have no label."""
        # `sorted` is stable, so that gates of one mark stay in the order of the report.
        rows = sorted(map(format_gate, question["gates"]), key=lambda row: row.passed)
        if not rows:
            self._add_row(table, name, self.text("no gate was set", "yellow"), Text())
        label = name
        for row in rows[:_MAX_GATES]:
            self._add_row(table, label, *self._format_gate(row))
            label = ""
        if len(rows) > _MAX_GATES:
            more = f"and {format_plural(len(rows) - _MAX_GATES, 'more gate')}"
            self._add_row(table, "", self.text(more, "dim"), Text())

    def _add_row(self, table: Table, label: str, figure: Text, remark: Text) -> None:
        start = self.text(f"  {label}", "dim")
        if self.narrow:
            table.add_row(start, Text.assemble(figure, "  ", remark))
        else:
            table.add_row(start, figure, remark)

    def _costs(self) -> Iterator[tuple[str, str, Text]]:
        sizes, latency = self.report["sizes"], self.report["latency"]
        change = f"{format_bytes(sizes['original_bytes'])} → {format_bytes(sizes['model_bytes'])}"
        yield "size", change, self.text(findings.describe_size(self.report))
        if file_bytes := self.report["bundle"]["bytes"]:
            yield "", format_bytes(file_bytes), self.text("the bundle file, with its loader")
        if latency:
            original, model = latency["original"]["p50"], latency["model"]["p50"]
            change = f"{format_ms(original)} → {format_ms(model)}"
            if list_disturbances(self.report):
                change = f"about {change}"
            yield "latency", change, self._format_speed(latency)
        else:
            yield "latency", "not measured", Text()
        if peak := self.report["memory"]["peak_rss_bytes"]:
            remark = "peak of the loader's process"
            # A foreign target's figure would be another one.
            if self.report.get("stands_in"):
                remark += " on the build host"
            yield "memory", format_bytes(peak), self.text(remark)

    def _format_speed(self, latency: LatencySection) -> Text:
        style = "bold yellow" if self.report["slower"] else ""
        speed = self.text(findings.describe_speed(self.report), style)
        if p90 := latency["model"].get("p90"):
            speed.append_text(self.text(f", p90 {format_ms(p90)}"))
        return speed

    def _format_gate(self, row: GateRow) -> tuple[Text, Text]:
        """Return the marked label of a gate, and its figure with bound and remarks."""
        mark, style = format_mark(row.passed)
        figure_style = "bold"
        if not row.passed:
            if not row.decisive:
                style = "yellow"
            figure_style = f"bold {style}"
        # The only output needs no name; a part of it, or its answer at another size, does.
        names = [output["name"] for output in self.report["outputs"]]
        label = row.label if [row.output] == names else row.title
        figure = Text.assemble(
            self.text(row.measured, figure_style),
            self.text(f"  {row.bound}", "dim"),
        )
        remarks = []
        if not row.decisive:
            remarks.append("not decisive")
        if row.note:
            remarks.append(row.note)
        if remarks and not self.narrow:
            figure.append_text(self.text("  " + ", ".join(remarks), "dim"))
        return Text.assemble(self.text(f"{mark} ", style), self.text(label)), figure

    def _print_passes(self, chain: Chain) -> None:
        """Print the figures after every pass, and below each figure its change."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("  after")
        keys = list(chain.columns)
        if self.narrow:
            keys = [key for key in keys if key in _FEW]
        # Several metrics leave no room for counts that the page has.
        elif len(keys) > _MOST and self.console.width < _WIDE:
            keys = [key for key in keys if key not in _COUNTS]
        for key in keys:
            name = chain.columns[key]
            # Headings are lower case here, except for acronyms: MACs, SNR.
            heading = name
            if name == name.capitalize():
                heading = name.lower()
            table.add_column(self.text(heading), justify="right")
        for row in chain.rows:
            cells = [self._format_cell(row.cells[key]) for key in keys]
            table.add_row(self.text(f"  {row.name}"), *cells)
        self.console.print(table)
        for remark in chain.remarks:
            self._print_indented(self.text(remark))

    def _print_auction(self, auction: AuctionTable) -> None:
        """Print the candidates with the reason why each lost."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        # The reasons need the room; the page has every figure.
        skipped: tuple[str, ...] = ()
        if self.narrow:
            skipped = ("size", "memory")
        elif self.console.width < _WIDE:
            skipped = ("memory",)
        for heading in auction.headings:
            if heading in skipped:
                continue
            name = "  candidate" if heading == "candidate" else heading
            numeric = heading not in ("candidate", "quality", "result")
            justify: JustifyMethod = "right" if numeric else "left"
            table.add_column(name, justify=justify, no_wrap=heading != "result")
        for row in auction.rows:
            cells = [f"  {row.name}"]
            figures = (*row.figures, row.result)
            for heading, figure in zip(auction.headings[1:], figures, strict=True):
                if heading not in skipped:
                    cells.append(figure)
            table.add_row(*map(self.text, cells), style="bold" if row.won else "dim")
        self.console.print(table)
        self._print_indented(self.text(auction.caption, "dim"))

    def _format_cell(self, cell: Cell) -> Text:
        text = self.text(cell.text, "red" if cell.missed else "")
        if cell.change:
            text = Text.assemble(text, "\n", self.text(cell.change, "dim"))
        return text

    def _print_ledger(self) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("  stage")
        table.add_column("status")
        table.add_column("time", justify="right")
        # The table of passes has these figures already, from more samples.
        if not self.narrow and not self.chain:
            table.add_column("size", justify="right")
        if not self.chain:
            table.add_column("SNR after", justify="right")
        for record in self.report["ledger"]:
            table.add_row(*self._format_record(record), style=_STATUS[record["status"]])
        self.console.print(table)

    def _format_record(self, record: RecordDocument) -> Iterator[Text]:
        yield self.text(f"  {record['stage']}")
        yield self.text(record["status"])
        # A skipped stage took no time that is worth a figure.
        seconds = format_seconds(record["seconds"])
        if record["status"] == "skipped":
            seconds = ""
        yield self.text(seconds)
        if self.chain:
            return
        if not self.narrow:
            yield self.text(format_bytes(record["bytes"]))
        yield self.text(findings.format_worst(record["parity"] or {}))

    def _print_warnings(self) -> None:
        warnings = self.report["warnings"]
        if not warnings:
            return
        self.console.print()
        grid = Table.grid(padding=(0, 1))
        for warning in warnings[:_MAX_WARNINGS]:
            grid.add_row(Text("  !", style="bold yellow"), self.text(warning))
        if len(warnings) > _MAX_WARNINGS:
            more = (
                f"and {format_plural(len(warnings) - _MAX_WARNINGS, 'more warning')} in the report"
            )
            grid.add_row(Text(), self.text(more, "dim"))
        self.console.print(grid)

    def _print_next_commands(self) -> None:
        commands = findings.list_next_commands(self.report, self.repeat)
        longest = max(len(command) for command, _ in commands)
        # Purposes are printed beside all commands or none.
        room = all(longest + len(purpose) + 6 <= self.console.width for _, purpose in commands)
        for command, purpose in commands:
            # Commands are copied from here: one unbroken line, never cut.
            line = Text.assemble("  ", self.text(command, "bold"))
            if room:
                line.pad_right(longest - len(command))
                line.append_text(self.text(f"  # {purpose}", "dim"))
            self.console.print(line, soft_wrap=True)
