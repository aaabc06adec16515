"""Progress of a build from Python: one display that updates itself in a notebook, else as usual."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from edgepack.forecast import TimeLeft, format_left
from edgepack.ledger import Progress, Record
from edgepack.progress import SilentProgress, format_stage, make_progress

# Seconds between two updates of a running stage.
_INTERVAL = 0.25


def choose_progress(
    show: bool | None, stages: Sequence[str], time_left: TimeLeft | None = None
) -> Progress:
    """Return the display for a build from Python.

    Args:
        show: True to show stages, False for silence; None shows them where somebody watches: in a
            notebook and on a terminal, but neither in a log nor in a pipe.
        stages: names of the stages to come, in order.
        time_left: forecast of the build's end; None to show none.
    """
    display: Progress = SilentProgress()
    if show is not False and _in_notebook():
        display = NotebookProgress(stages, time_left)
    elif show or (show is None and sys.stderr.isatty()):
        display = make_progress(stages=stages, time_left=time_left)
    return PythonWarnings(display)


def _in_notebook() -> bool:
    """Return True inside a kernel of Jupyter; IPython on a terminal is a terminal."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class PythonWarnings:
    """Display that raises the build's warnings as Python's, so that none is lost in silence."""

    def __init__(self, display: Progress) -> None:
        self._display = display

    def begin(self, stage: str, total: int | None = None) -> None:
        """Begin a stage."""
        self._display.begin(stage, total)

    def advance(self, steps: int = 1) -> None:
        """Count steps."""
        self._display.advance(steps)

    def expect(self, total: int) -> None:
        """Set the number of steps."""
        self._display.expect(total)

    def tell(self, text: str) -> None:
        """Show the state of the stage."""
        self._display.tell(text)

    def end(self, record: Record) -> None:
        """End the stage."""
        self._display.end(record)

    def warn(self, message: str) -> None:
        """Warn at the line of the program that started the build."""
        warn_caller(message, UserWarning)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the nearest line outside edgepack."""
    # stacklevel 1 is this function, 2 its caller, and so on.
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("edgepack"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class NotebookProgress(SilentProgress):
    """Display in the output of a cell: a line for each finished stage, and the running one.

    The whole text is one display, which is replaced at every change.

    Args:
        stages: names of the stages to come, in order, to print "stage 3 of 11".
        time_left: forecast of the build's end; None to show none.
    """

    def __init__(self, stages: Sequence[str], time_left: TimeLeft | None = None) -> None:
        self._time_left = time_left or TimeLeft()
        self._stages = stages
        self._lines: list[str] = []
        self._running: list[str] = []
        self._text = ""
        self._done, self._total = 0, 0
        self._handle: Any = None
        self._last_update = 0.0

    def begin(self, stage: str, total: int | None = None) -> None:
        """Show the stage as the running one."""
        self._time_left.begin(stage, total)
        self._running.append(stage)
        self._text, self._done, self._total = "", 0, total or 0
        self._update(force=True)

    def advance(self, steps: int = 1) -> None:
        """Show the number of steps."""
        self._time_left.advance(steps)
        self._done += steps
        self._update()

    def expect(self, total: int) -> None:
        """Show the number of steps to come."""
        self._time_left.expect(total)
        self._total = total
        self._update()

    def tell(self, text: str) -> None:
        """Show the text beside the stage's name."""
        self._text = text
        self._update()

    def end(self, record: Record) -> None:
        """Replace the running stage by its line."""
        self._time_left.end(record)
        if self._running:
            self._running.pop()
        self._lines.append(format_stage(record))
        self._text, self._done, self._total = "", 0, 0
        self._update(force=True)

    def _update(self, force: bool = False) -> None:
        # IPython has types for its functions, but not for their arguments.
        show: Any = import_module("IPython.display").display
        now = time.monotonic()
        if not force and now - self._last_update < _INTERVAL:
            return
        self._last_update = now
        content = {"text/plain": "\n".join([*self._lines, *self._describe_running()])}
        if self._handle is None:
            self._handle = show(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def _describe_running(self) -> list[str]:
        """Return the line of the running stage: "stage 3 of 11: original 128/400"."""
        if not self._running:
            return []
        name = self._running[-1]
        if name in self._stages:
            position = list(self._stages).index(name) + 1
            name = f"stage {position} of {len(self._stages)}: {name}"
        steps = f" {self._done}/{self._total}" if self._total else ""
        text = f"  {self._text}" if self._text else ""
        left = format_left(self._time_left.seconds())
        return [f"{name}{steps}{text}{f'  {left}' if left else ''}"]
