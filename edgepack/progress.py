"""Progress of a build on standard error: one live line on a terminal, plain lines elsewhere.

rich is imported when the first stage begins on a terminal, so that `--help` stays fast.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from edgepack.forecast import TimeLeft, format_left
from edgepack.ledger import Progress, Record
from edgepack.report.figures import fit, format_bytes, format_seconds, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Live
    from rich.progress import TaskID

# Seconds between two lines of a stage in a log.
TELL_SECONDS = 20.0

_MARKS = {
    "done": ("✓", "green"),
    "cached": ("↺", "cyan"),
    "skipped": ("–", "dim"),
    "failed": ("✗", "bold red"),
}


def make_progress(
    quiet: bool = False,
    verbose: int = 0,
    stages: Sequence[str] = (),
    time_left: TimeLeft | None = None,
) -> Progress:
    """Return the progress display that suits standard error.

    Args:
        quiet: print warnings only.
        verbose: 1 or more prints all notes of a stage instead of the first.
        stages: names of the stages to come, in order; empty if they are not known.
        time_left: forecast of the build's end; None to show none.
    """
    if quiet:
        return QuietProgress(sys.stderr)
    # A dumb terminal, as in some editors, cannot move the cursor.
    if sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        return TerminalProgress(verbose, stages=stages, time_left=time_left)
    return PlainProgress(sys.stderr, verbose, time_left)


class SilentProgress:
    """Display without output, for the processes that help the main one to train."""

    def begin(self, stage: str, total: int | None = None) -> None:
        """Ignore it."""

    def advance(self, steps: int = 1) -> None:
        """Ignore it."""

    def expect(self, total: int) -> None:
        """Ignore it."""

    def tell(self, text: str) -> None:
        """Ignore it."""

    def end(self, record: Record) -> None:
        """Ignore it."""

    def warn(self, message: str) -> None:
        """Ignore it."""


class QuietProgress(SilentProgress):
    """Display of warnings only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def warn(self, message: str) -> None:
        """Print the warning."""
        self._print(f"warning: {message}")

    def _print(self, line: str) -> None:
        # A log in ASCII gets "-" for an en dash instead of an exception.
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(fit(printable(line), encoding).rstrip() + "\n")
        self._stream.flush()


class PlainProgress(QuietProgress):
    """Display of one line per finished stage without control codes, for logs and pipes."""

    def __init__(self, stream: TextIO, verbose: int = 0, time_left: TimeLeft | None = None) -> None:
        super().__init__(stream)
        self._verbose = verbose
        self._last_print = time.monotonic()
        self._time_left = time_left or TimeLeft()

    def begin(self, stage: str, total: int | None = None) -> None:
        """Begin a stage for the forecast."""
        self._time_left.begin(stage, total)

    def advance(self, steps: int = 1) -> None:
        """Count steps for the forecast."""
        self._time_left.advance(steps)

    def expect(self, total: int) -> None:
        """Set the number of steps for the forecast."""
        self._time_left.expect(total)

    def tell(self, text: str) -> None:
        """Print the text at most every 20 s, as a sign of life of a long stage."""
        # The forecast follows every text, so that the printed one is a smooth one.
        left = format_left(self._time_left.seconds())
        if time.monotonic() - self._last_print >= TELL_SECONDS:
            self._last_print = time.monotonic()
            self._print(f"{'':8}{', '.join(filter(None, (text, left)))}")

    def end(self, record: Record) -> None:
        """Print the line of the stage, followed by its other notes if verbose."""
        self._time_left.end(record)
        first, *other_notes = _notes(record, self._verbose)
        self._print(f"{record.status:<8}{_columns(record)}  {first}")
        for note in other_notes:
            self._print(f"{'':8}{note}")


class TerminalProgress:
    """Display of a live line for the running stage, and a permanent line per finished one.

    The live line has a bar if the number of steps is known, and a spinner otherwise; a thread of
    rich animates it while the stage computes. Stages may be nested.

    Args:
        verbose: 1 or more prints all notes of a stage instead of the first.
        console: console to print on; None for standard error.
        stages: names of the stages to come, in order, to print "stage 3 of 11"; empty if they are
            not known.
        time_left: forecast of the build's end; None to show none.
    """

    def __init__(
        self,
        verbose: int = 0,
        console: Console | None = None,
        stages: Sequence[str] = (),
        time_left: TimeLeft | None = None,
    ) -> None:
        self._verbose = verbose
        self._time_left = time_left or TimeLeft()
        self._output = console
        self._live: Live | None = None
        self._tasks: list[TaskID] = []
        self._stages: list[str] = []
        self._plan = stages
        # Position in the plan of the stage that runs or ran last.
        self._position = -1

    @property
    def _console(self) -> Console:
        if self._output is None:
            from edgepack.report.console import StderrConsole

            self._output = StderrConsole()
        return self._output

    def begin(self, stage: str, total: int | None = None) -> None:
        """Show the stage on the live line."""
        self._time_left.begin(stage, total)
        # Nested stages share one live display, each with its own task.
        if self._live is None:
            self._live = self._line()
            self._live.start()
        label = self._number(stage)
        self._tasks.append(self._live.add_task(self._fit(label), total=total))
        self._stages.append(label)

    def _number(self, stage: str) -> str:
        """Return "stage 3 of 11: original"; the name alone for a stage outside the plan."""
        # From the last stage on: a chain may name a pass twice.
        for position in range(self._position + 1, len(self._plan)):
            if self._plan[position] == stage:
                self._position = position
                return f"stage {position + 1} of {len(self._plan)}: {stage}"
        return stage

    def advance(self, steps: int = 1) -> None:
        """Advance the bar of the running stage."""
        self._time_left.advance(steps)
        if self._live is not None and self._tasks:
            self._live.advance(self._tasks[-1], steps)

    def expect(self, total: int) -> None:
        """Replace the spinner of the running stage by a bar."""
        self._time_left.expect(total)
        if self._live is not None and self._tasks:
            self._live.update(self._tasks[-1], total=total)

    def tell(self, text: str) -> None:
        """Show the text beside the stage's name."""
        if self._live is not None and self._tasks:
            description = self._fit(f"{self._stages[-1]}  {text}")
            self._live.update(self._tasks[-1], description=description)

    def end(self, record: Record) -> None:
        """Clear the live line, even after a failure, and print the permanent one."""
        self._time_left.end(record)
        # The live display ends with the outermost stage.
        if self._live is not None:
            if self._tasks:
                self._live.remove_task(self._tasks.pop())
                self._stages.pop()
            if not self._tasks:
                self._live.stop()
                self._live = None
        self._stay(record)

    def warn(self, message: str) -> None:
        """Print the warning above the live line."""
        from rich.text import Text

        text = Text.assemble(("! ", "bold yellow"), self._fit(message))
        self._console.print(text)

    def _line(self) -> Live:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
        )
        from rich.table import Column
        from rich.text import Text

        class Elapsed(ProgressColumn):
            """Column with the time since the stage began."""

            def render(self, task: Task) -> Text:
                return Text(format_seconds(task.elapsed or 0.0), style="dim")

        time_left = self._time_left

        class Left(ProgressColumn):
            """Column with the forecast of the whole build."""

            def render(self, task: Task) -> Text:
                return Text(format_left(time_left.seconds()), style="dim", no_wrap=True)

        class Steps(MofNCompleteColumn):
            """Column with the number of steps done, and the total if it is known."""

            def render(self, task: Task) -> Text:
                if task.total is None:
                    # Nothing rather than a 0 for stages that never count their steps.
                    return Text(str(int(task.completed) or ""), style="dim")
                return super().render(task)

        # The spinner "dots" is in braille, "line" in ASCII.
        spinner = "line"
        if self._console.encoding.lower().startswith("utf"):
            spinner = "dots"
        # The text of a stage is cut where the terminal is narrow, and nothing wraps.
        description = Column(no_wrap=True, overflow="ellipsis")
        return Progress(
            SpinnerColumn(spinner),
            TextColumn("{task.description}", markup=False, table_column=description),
            BarColumn(bar_width=16),
            Steps(table_column=Column(no_wrap=True, justify="right")),
            Elapsed(table_column=Column(no_wrap=True, justify="right")),
            Left(table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            # Output of other code goes above the live line; a redirected stdout is not touched.
            redirect_stdout=sys.stdout.isatty(),
        )

    def _stay(self, record: Record) -> None:
        from rich.padding import Padding
        from rich.text import Text

        mark, style = _MARKS[record.status]
        line = Text.assemble((self._fit(mark), style), self._fit(f" {_columns(record)}"))
        notes = _notes(record, self._verbose)
        note_style = "dim"
        if record.status == "failed":
            note_style = "red"
        # Without --verbose the note shares the line, which is cut at the width of the terminal.
        if not self._verbose:
            line.append(self._fit(f"  {notes[0]}"), note_style)
        line.rstrip()
        self._console.print(line, no_wrap=True, overflow="ellipsis")
        if self._verbose:
            for note in filter(None, notes):
                text = Text(self._fit(note), style=note_style)
                self._console.print(Padding(text, (0, 0, 0, 4), expand=False))

    def _fit(self, text: str) -> str:
        return fit(printable(text), self._console.encoding)


def format_stage(record: Record) -> str:
    """Return the line of a finished stage: status, name, seconds, size and its first note."""
    first = _notes(record, 0)[0]
    return f"{record.status:<8}{_columns(record)}  {first}".rstrip()


def _columns(record: Record) -> str:
    """Format stage, seconds and size as columns."""
    # "export            1.2 s    4.1 MB"
    seconds = format_seconds(record.seconds)
    if record.status == "skipped":
        seconds = ""
    return f"{record.stage:<12}{seconds:>12}{format_bytes(record.bytes):>11}"


def _notes(record: Record, verbose: int) -> tuple[str, ...]:
    """Return the notes to print: the first or all, and an empty one if there is none."""
    notes = record.notes or ("",)
    if verbose:
        return notes
    return notes[:1]
