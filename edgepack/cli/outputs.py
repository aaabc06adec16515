"""Options of commands that write their checks for a CI system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack import files
from edgepack.errors import EdgepackError
from edgepack.runtime.streams import write_status

if TYPE_CHECKING:
    from edgepack.report.checks import Checks


@dataclass(frozen=True)
class Outputs:
    """Files and annotations for a CI system.

    Attributes:
        junit: file to write as JUnit's XML; None for none.
        summary: file that a summary in Markdown is appended to; None for none.
        annotates: print annotations of GitHub Actions on standard error.
        written: checks of the targets so far, which share the file.
    """

    junit: Path | None
    summary: Path | None
    annotates: bool
    written: list[Checks] = field(default_factory=list)

    @property
    def requested(self) -> bool:
        """Return True if anything is to be written."""
        return bool(self.junit or self.summary or self.annotates)

    def write(self, checks: Checks) -> None:
        """Write the files, and print the annotations."""
        from edgepack.report.checks import annotate, render_junit, render_summary

        if self.junit:
            # Written anew for each target: the file is whole whenever the build stops.
            self.written.append(checks)
            files.write(self.junit, render_junit(*self.written))
        if self.summary:
            # GitHub's file of a step's summary collects those of all its commands.
            with self.summary.open("a", encoding="utf-8") as file:
                file.write(render_summary(checks) + "\n")
        lines = annotate(checks)
        if self.annotates and lines:
            write_status("\n".join(lines))


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--junit`, `--summary` and `--format` to a command, which gets them as `outputs`.

    An error of the command is written as well, before it is printed.
    """

    @wraps(command)
    def run(
        *args: Any, junit: Path | None, summary: Path | None, style: str, **kwargs: Any
    ) -> None:
        outputs = Outputs(junit, summary, style == "github")
        # Before hours of a build, not after them.
        for path in (junit, summary):
            if path:
                files.check_output(path, ())
        try:
            command(*args, outputs=outputs, **kwargs)
        except EdgepackError as error:
            # A missed gate has written its report already.
            if outputs.requested and error.exit_code != 1:
                from edgepack.report.checks import check_error

                context = click.get_current_context()
                subject = str(kwargs.get("bundle") or kwargs.get("model"))
                outputs.write(check_error(f"{context.info_name} {subject}", error))
            raise

    for option in (
        click.option(
            "--format",
            "style",
            type=click.Choice(["text", "github"]),
            default="text",
            show_default=True,
            help="`github` also annotates a job of GitHub Actions.",
        ),
        click.option(
            "--summary",
            type=click.Path(path_type=Path),
            metavar="FILE.md",
            help="Append a summary in Markdown to this file, such as $GITHUB_STEP_SUMMARY.",
        ),
        click.option(
            "--junit",
            type=click.Path(path_type=Path),
            metavar="FILE.xml",
            help="Write a test case for each gate to this file, as JUnit's XML.",
        ),
    ):
        run = option(run)
    return run
