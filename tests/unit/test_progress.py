"""Progress on a terminal, in a log, and when asked to be quiet."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from edgepack.graph.quiet import muted
from edgepack.ledger import Ledger, Progress
from edgepack.progress import PlainProgress, QuietProgress, TerminalProgress, make_progress


def build(progress: Progress) -> None:
    """A small build: done, skipped, warned, and failed at last."""
    ledger = Ledger(progress)
    with ledger.stage("source") as stage:
        stage.set(bytes=18680114)
        stage.note("Loaded a state dict.", "It has 49 layers.")
    with ledger.stage("prune") as stage:
        stage.set(status="skipped")
        stage.note("Nothing asked for it.")
    with ledger.stage("calibrate") as stage:
        progress.expect(4)
        for _ in range(4):
            progress.advance()
        ledger.warn("only 4 samples [red]x[/red]\x1b[2J")
        stage.set(bytes=4902311)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(ledger)


def _interrupted(ledger: Ledger) -> None:
    with ledger.stage("verify", total=2):
        ledger.progress.advance()
        raise KeyboardInterrupt


def terminal(**options: object) -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=80, highlight=False, legacy_windows=False, **options
    )  # type: ignore[arg-type]
    return stream, console


def test_a_log_gets_one_line_for_each_stage() -> None:
    stream = io.StringIO()
    build(PlainProgress(stream))
    assert [" ".join(line.split()) for line in stream.getvalue().splitlines()] == [
        "done source 0.0 s 18.68 MB Loaded a state dict.",
        "skipped prune Nothing asked for it.",
        "warning: only 4 samples [red]x[/red]\\x1b[2J",
        "done calibrate 0.0 s 4.90 MB",
        "failed verify 0.0 s",
    ]
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_verbose_log_has_every_note() -> None:
    stream = io.StringIO()
    build(PlainProgress(stream, verbose=1))
    assert "It has 49 layers." in stream.getvalue()


def told(progress: Progress, pause: float = 0.0) -> None:
    with Ledger(progress).stage("distill", total=3):
        for loss in ("0.5", "0.25", "0.125"):
            progress.tell(f"loss {loss}")
            progress.advance()
            time.sleep(pause)


def test_a_log_is_told_now_and_then_how_far_a_long_stage_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    told(PlainProgress(stream))
    assert "loss" not in stream.getvalue()
    monkeypatch.setattr("edgepack.progress.TELL_SECONDS", 0.0)
    told(PlainProgress(stream))
    assert re.findall(r"^ {8}loss (\S+)$", stream.getvalue(), re.M) == ["0.5", "0.25", "0.125"]


def test_a_terminal_shows_it_beside_the_stage() -> None:
    stream, console = terminal()
    told(TerminalProgress(console=console), pause=0.3)
    assert "distill  loss 0.25" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    # What stays is the stage's line alone.
    assert "loss" not in stream.getvalue().splitlines()[-1]


def test_quiet_lets_warnings_through_alone() -> None:
    stream = io.StringIO()
    build(QuietProgress(stream))
    told(QuietProgress(stream))
    assert stream.getvalue() == "warning: only 4 samples [red]x[/red]\\x1b[2J\n"


def test_a_log_in_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    build(PlainProgress(stream))
    PlainProgress(stream).warn("naïve → 3 ≥ 2")
    assert raw.getvalue().endswith(b"warning: na\\xefve -> 3 >= 2\n")


def test_a_terminal_keeps_one_line_for_each_stage() -> None:
    stream, console = terminal(no_color=True)
    build(TerminalProgress(console=console))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    for line in ("✓ source", "– prune", "✓ calibrate", "✗ verify", "18.68 MB", "4.90 MB"):
        assert line in shown
    assert "Loaded a state dict." in shown
    assert "It has 49 layers." not in shown
    assert "[red]x[/red]\\x1b[2J" in shown
    assert "\x1b[2J" not in shown


def test_the_cursor_comes_back_after_a_failure() -> None:
    stream, console = terminal()
    build(TerminalProgress(console=console))
    shown = stream.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_verbose_terminal_has_every_note() -> None:
    stream, console = terminal(no_color=True)
    build(TerminalProgress(verbose=1, console=console))
    assert "It has 49 layers." in stream.getvalue()


def test_the_heartbeat_beats_while_a_stage_computes() -> None:
    stream, console = terminal(no_color=True)
    progress = TerminalProgress(console=console)
    progress.begin("export")
    time.sleep(0.5)
    live = progress._live
    assert live is not None
    live.stop()
    assert len(set(re.findall("[\u2800-\u28ff]", stream.getvalue()))) >= 2


def test_a_bar_stands_where_the_steps_are_known() -> None:
    stream, console = terminal(no_color=True)
    progress = TerminalProgress(console=console)
    ledger = Ledger(progress)
    with ledger.stage("calibrate", total=8):
        progress.advance(3)
        time.sleep(0.25)
    assert "3/8" in stream.getvalue()


def test_stages_may_be_nested() -> None:
    stream, console = terminal(no_color=True)
    ledger = Ledger(TerminalProgress(console=console))
    with ledger.stage("quantize"), ledger.stage("calibrate", total=1):
        ledger.progress.advance()
    lines = [line for line in stream.getvalue().splitlines() if "✓" in line]
    assert [line.split("✓")[1].split()[0] for line in lines] == ["calibrate", "quantize"]


def test_a_pipe_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(make_progress()) is PlainProgress
    assert type(make_progress(quiet=True, verbose=2)) is QuietProgress


def test_a_terminal_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert type(make_progress()) is TerminalProgress
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress()) is PlainProgress


def test_importing_it_brings_nothing_heavy() -> None:
    code = (
        "import sys, edgepack.progress, edgepack.report\n"
        "print(sorted({'rich', 'jinja2', 'jsonschema', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_live_line_counts_the_stages_of_the_plan() -> None:
    stream, console = terminal()
    progress = TerminalProgress(console=console, stages=("source", "prune", "calibrate", "verify"))
    build(progress)
    text = stream.getvalue()
    for label in ("stage 1 of 4: source", "stage 3 of 4: calibrate", "stage 4 of 4: verify"):
        assert label in text


def test_a_pass_that_runs_twice_is_counted_twice() -> None:
    progress = TerminalProgress(stages=("distill", "quantize", "distill"))
    labels = [progress._number(name) for name in ("distill", "repair", "distill")]
    assert labels == ["stage 1 of 3: distill", "repair", "stage 3 of 3: distill"]


def test_the_live_line_stays_one_line_while_an_exporter_is_silenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console(stderr=True, force_terminal=True, width=80, legacy_windows=False)
    progress = TerminalProgress(console=console)
    with Ledger(progress).stage("export"), muted():
        print("noise", file=sys.stderr)
        time.sleep(0.3)
    # A frame replaces the line before it; one that is printed as text is followed by a new line.
    assert stream.getvalue().count("\n") <= 3
    assert "noise" not in stream.getvalue()
