"""Exit statuses where a standard stream cannot be written, however it is buffered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack.runtime.errors import InputError
from edgepack.runtime.streams import printable
from support.bundle_cases import REPORT, reseal
from support.report_cases import EXAMPLE

pytestmark = pytest.mark.slow

# Python's own buffering, none by an option, none by the environment.
MODES = {"buffered": ([], {}), "-u": (["-u"], {}), "variable": ([], {"PYTHONUNBUFFERED": "1"})}
HOST = "-m edgepack "


@pytest.fixture(scope="module")
def reported(linear_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the report of another build."""
    folder = tmp_path_factory.mktemp("reported")
    reseal(linear_bundle, folder / "first.edgepack", {REPORT: EXAMPLE.read_bytes()})
    # The second time, the report gets the digest of its bundle.
    path = folder / "second.edgepack"
    reseal(folder / "first.edgepack", path, {})
    return path


def run_scrubbed(
    mode: str, line: str, bundle: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python LINE` in a shell whose environment holds a PATH and a HOME alone.

    `BUNDLE` in the line is the bundle.
    """
    options, variables = MODES[mode]
    environment = {"PATH": os.defpath, "HOME": "/nonexistent", **variables}
    command = 'python="$0"; bundle="$1"; shift; exec "$python" "$@" ' + line
    return subprocess.run(
        ["sh", "-c", command.replace("BUNDLE", '"$bundle"'), sys.executable, str(bundle), *options],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("BUNDLE no-such 2>/dev/full", 2),
        ("BUNDLE info >/dev/full", 2),
        ("BUNDLE no-such >/dev/full 2>/dev/full", 2),
        ("BUNDLE verify --threads x --json >/dev/full 2>/dev/full", 2),
        ("BUNDLE --help >/dev/full", 2),
        ("BUNDLE info --json >/dev/full", 2),
        ("BUNDLE info --requirements >/dev/full 2>/dev/full", 2),
        ("BUNDLE info --json >&- 2>&-", 2),
        ("BUNDLE info >&- 2>&- <&-", 2),
        ("BUNDLE no-such >&- 2>&-", 2),
        ("BUNDLE verify >/dev/full", 2),
        ("BUNDLE info --json 2>/dev/full >/dev/null", 0),
        ("BUNDLE verify 2>&- >/dev/null", 0),
    ],
)
def test_a_bundle_ends_with_its_own_status(
    mode: str, line: str, status: int, linear_bundle: Path
) -> None:
    done = run_scrubbed(mode, line, linear_bundle)
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("no-such 2>/dev/full", 2),
        ("targets list >/dev/full", 2),
        ("targets show cpu-fbgemm >/dev/full", 2),
        ("targets list --json >/dev/full 2>/dev/full", 2),
        ("--help >/dev/full", 2),
        ("targets --help >/dev/full 2>&-", 2),
        ("--version >&-", 2),
        ("completion bash >/dev/full", 2),
        ("targets list --json >&- 2>&-", 2),
        ("targets list >&- 2>&- <&-", 2),
        ("inspect no-such.edgepack 2>/dev/full", 2),
    ],
)
def test_the_host_ends_with_its_own_status(mode: str, line: str, status: int) -> None:
    done = run_scrubbed(mode, HOST + line)
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "-u BUNDLE info",
        "BUNDLE info",
        "BUNDLE info --json",
        "BUNDLE verify",
        "BUNDLE --help",
        "-m edgepack targets list",
        "-m edgepack --help",
        "-m edgepack inspect BUNDLE",
    ],
)
def test_a_reader_that_has_gone_ends_it_quietly(line: str, reported: Path) -> None:
    """The status is the one of a program that SIGPIPE ends, and no missed gate's."""
    arguments = [str(reported) if word == "BUNDLE" else word for word in line.split()]
    assert run_unread(arguments, subprocess.PIPE) == (141, "")
    assert run_unread(arguments, subprocess.STDOUT) == (141, None)


def run_unread(arguments: list[str], stderr: int) -> tuple[int, str | None]:
    """Run Python with nobody behind its standard output; return the status and the messages."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *arguments], stdout=writer, stderr=stderr, text=True)
    os.close(writer)
    return done.returncode, done.stderr


def test_an_error_is_told_even_if_nobody_reads_the_result(linear_bundle: Path) -> None:
    status, message = run_unread([str(linear_bundle), "no-such", "--json"], subprocess.PIPE)
    assert status == 2
    assert str(message).startswith("error[usage]: ")


def test_a_closed_stream_is_no_other_file(linear_bundle: Path, tmp_path: Path) -> None:
    """The next file that is opened must not get the number of standard output or standard error."""
    output = tmp_path / "out.npz"
    done = run_scrubbed("buffered", f"BUNDLE run --output '{output}' >&- 2>&- <&-", linear_bundle)
    # The outputs are written; the text that lists them cannot be.
    assert done.returncode == 2
    assert output.read_bytes().startswith(b"PK\3\4")


def test_a_usage_error_is_a_document_too(linear_bundle: Path) -> None:
    done = run_scrubbed("buffered", "BUNDLE verify --samples none --json", linear_bundle)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nverdict: PASS", "a verdict: PASS"),
        ("\u202egpj\u2066", "\\u202egpj\\u2066"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("Größe µ日本", "Größe µ日本"),
    ],
)
def test_what_steers_a_terminal_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_no_part_of_an_error_passes_for_a_line_of_its_own() -> None:
    error = InputError("x", "cannot read a\nverdict: PASS", why="b\nverdict: PASS")
    assert not [line for line in str(error).splitlines() if line.startswith("verdict")]
