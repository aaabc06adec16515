"""How far a build is, on standard error: one live line on a terminal, plain lines elsewhere.

rich is imported when a terminal's first stage begins, so that `--help` need not wait for it.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from edgepack.ledger import Progress, Record
from edgepack.report.figures import bytes_text, fit, printable, seconds_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Live
    from rich.progress import TaskID

# Seconds between two lines of one stage in a log.
TELL_SECONDS = 20.0

_MARKS = {
    "done": ("✓", "green"),
    "cached": ("↺", "cyan"),
    "skipped": ("–", "dim"),
    "failed": ("✗", "bold red"),
}


def make_progress(quiet: bool = False, verbose: int = 0) -> Progress:
    """The progress that fits standard error.

    Args:
        quiet: nothing but warnings.
        verbose: 1 or more prints all notes of a stage, not its first alone.
    """
    if quiet:
        return QuietProgress(sys.stderr)
    if sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        return TerminalProgress(verbose)
    return PlainProgress(sys.stderr, verbose)


class SilentProgress:
    """Nothing at all: that of the processes that help the main one to train."""

    def begin(self, stage: str, total: int | None = None) -> None:
        """Says nothing."""

    def advance(self, steps: int = 1) -> None:
        """Says nothing."""

    def expect(self, total: int) -> None:
        """Says nothing."""

    def tell(self, text: str) -> None:
        """Says nothing."""

    def end(self, record: Record) -> None:
        """Says nothing."""

    def warn(self, message: str) -> None:
        """Says nothing."""


class QuietProgress(SilentProgress):
    """Nothing but warnings."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def warn(self, message: str) -> None:
        """Prints the warning."""
        self._print(f"warning: {message}")

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(fit(printable(line), encoding).rstrip() + "\n")
        self._stream.flush()


class PlainProgress(QuietProgress):
    """One line when a stage ends, without control codes: for logs and pipes."""

    def __init__(self, stream: TextIO, verbose: int = 0) -> None:
        super().__init__(stream)
        self._verbose = verbose
        self._told = time.monotonic()

    def tell(self, text: str) -> None:
        """Prints it now and then: a log shows that a long stage is alive."""
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            self._print(f"{'':8}{text}")

    def end(self, record: Record) -> None:
        """Prints the stage's line; its further notes below it when verbose."""
        first, *further = _notes(record, self._verbose)
        self._print(f"{record.status:<8}{_columns(record)}  {first}")
        for note in further:
            self._print(f"{'':8}{note}")


class TerminalProgress:
    """One live line for the running stage; a line that stays for each that ended.

    The live line has a bar where the number of steps is known and a turning sign where it is not;
    a thread of rich keeps it moving while the stage computes. Stages may be nested.

    Args:
        verbose: 1 or more prints all notes of a stage, not its first alone.
        console: to print on; standard error unless given.
    """

    def __init__(self, verbose: int = 0, console: Console | None = None) -> None:
        self._verbose = verbose
        self._given = console
        self._live: Live | None = None
        self._tasks: list[TaskID] = []
        self._stages: list[str] = []

    @property
    def _console(self) -> Console:
        if self._given is None:
            from edgepack.report.console import StderrConsole

            self._given = StderrConsole()
        return self._given

    def begin(self, stage: str, total: int | None = None) -> None:
        """Shows the stage on the live line."""
        if self._live is None:
            self._live = self._line()
            self._live.start()
        self._tasks.append(self._live.add_task(self._fit(stage), total=total))
        self._stages.append(stage)

    def advance(self, steps: int = 1) -> None:
        """Moves the bar of the running stage."""
        if self._live is not None and self._tasks:
            self._live.advance(self._tasks[-1], steps)

    def expect(self, total: int) -> None:
        """Turns the heartbeat of the running stage into a bar."""
        if self._live is not None and self._tasks:
            self._live.update(self._tasks[-1], total=total)

    def tell(self, text: str) -> None:
        """Shows it beside the stage's name."""
        if self._live is not None and self._tasks:
            told = self._fit(f"{self._stages[-1]}  {text}")
            self._live.update(self._tasks[-1], description=told)

    def end(self, record: Record) -> None:
        """Clears the live line, however the stage ended, and prints the line that stays."""
        if self._live is not None:
            if self._tasks:
                self._live.remove_task(self._tasks.pop())
                self._stages.pop()
            if not self._tasks:
                self._live.stop()
                self._live = None
        self._stay(record)

    def warn(self, message: str) -> None:
        """Prints the warning above the live line."""
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
        from rich.text import Text

        class Elapsed(ProgressColumn):
            """Time since the stage began."""

            def render(self, task: Task) -> Text:
                return Text(seconds_text(task.elapsed or 0.0), style="dim")

        class Steps(MofNCompleteColumn):
            """Steps done; of how many, where that is known."""

            def render(self, task: Task) -> Text:
                if task.total is None:
                    return Text(str(int(task.completed)) if task.completed else "", style="dim")
                return super().render(task)

        utf8 = self._console.encoding.lower().startswith("utf")
        return Progress(
            SpinnerColumn("dots" if utf8 else "line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            Steps(),
            Elapsed(),
            console=self._console,
            transient=True,
            # What other code prints stands above the live line; a redirected stdout stays as it is.
            redirect_stdout=sys.stdout.isatty(),
        )

    def _stay(self, record: Record) -> None:
        from rich.padding import Padding
        from rich.text import Text

        mark, style = _MARKS[record.status]
        line = Text.assemble((self._fit(mark), style), self._fit(f" {_columns(record)}"))
        notes = _notes(record, self._verbose)
        note_style = "red" if record.status == "failed" else "dim"
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


def _columns(record: Record) -> str:
    """Stage, seconds and size, in columns."""
    seconds = "" if record.status == "skipped" else seconds_text(record.seconds)
    return f"{record.stage:<12}{seconds:>12}{bytes_text(record.bytes):>11}"


def _notes(record: Record, verbose: int) -> tuple[str, ...]:
    """The notes to print: the first, or all; at least one, which may be empty."""
    notes = record.notes if verbose else record.notes[:1]
    return notes or ("",)
