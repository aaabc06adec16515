"""Builds of `edgepack build`: one, or one for each of several targets."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.cli.boundary import (
    FAILED,
    TERMINATED,
    find_status,
    format_command,
    print_failure,
    print_json,
)
from edgepack.errors import EdgepackError, SpecError
from edgepack.runtime.streams import print_status

if TYPE_CHECKING:
    from edgepack.cli.outputs import Outputs
    from edgepack.proof import Outcome
    from edgepack.report.targets import TargetRow
    from edgepack.request import Request
    from edgepack.stages import SharedStages


def spread_output(output: Path | None, targets: Sequence[str]) -> Path | None:
    """Return `--output` as a pattern that gives each target a file of its own.

    A folder "out" becomes "out/{name}-{target}.edgepack" for several targets.

    Raises SpecError: target-twice, output-shared.
    """
    from edgepack.request import DEFAULT_OUTPUT

    for name in targets:
        if targets.count(name) > 1:
            raise SpecError(
                "target-twice",
                f"the target {name} is repeated",
                why=f"--target {' --target '.join(targets)}",
                hint="name each target once",
            )
    # Two targets and `-o x.edgepack` would overwrite each other.
    if output is None or len(targets) == 1 or "{target}" in str(output):
        return output
    if output.suffix == ".edgepack" and not output.is_dir():
        raise SpecError(
            "output-shared",
            f"{len(targets)} targets cannot be written to one file",
            why=f"--output {output} has no {{target}} in it",
            hint=f"--output {shlex.quote(str(output.with_name(DEFAULT_OUTPUT)))}, or a folder",
        )
    return output / DEFAULT_OUTPUT


@dataclass(frozen=True)
class Display:
    """Options on what a build prints.

    Attributes:
        quiet: print only warnings and errors.
        verbose: 1 or more prints every note of every stage.
        as_json: print the result as JSON on stdout.
    """

    quiet: bool
    verbose: int
    as_json: bool


def run_build(
    request: Request, display: Display, outputs: Outputs, shared: SharedStages | None = None
) -> Outcome | None:
    """Build with a progress display, and write the checks for a CI system.

    Returns None in a training process other than the main one.
    """
    from edgepack.forecast import forecast
    from edgepack.ledger import Progress
    from edgepack.passes.training import processes
    from edgepack.pipeline import build, list_stages, refuse_exit
    from edgepack.progress import SilentProgress, make_progress
    from edgepack.proof import RejectedBundleError
    from edgepack.report.checks import check_report

    # With several training processes, only the main one draws progress and writes the bundle.
    progress: Progress = SilentProgress()
    if processes.is_main():
        stages = list_stages(request)
        time_left = forecast(request, stages)
        progress = make_progress(display.quiet, display.verbose, stages, time_left)
    try:
        with refuse_exit(TERMINATED):
            outcome = build(request, progress, shared)
    except RejectedBundleError as error:
        if outputs.requested:
            outputs.write(check_report(error.outcome.report))
        raise
    if outcome is not None and outputs.requested:
        outputs.write(check_report(outcome.report, request.allow_unverified))
    return outcome


def build_each(requests: Sequence[Request], display: Display, outputs: Outputs) -> int:
    """Build for every target, print one table or list, and return the worst exit status.

    An error of one target is printed, and the next one is built all the same.
    """
    from edgepack.report import render_targets
    from edgepack.report.console import ResultConsole
    from edgepack.stages import SharedStages

    shared = SharedStages()
    rows: list[TargetRow] = []
    documents: list[object] = []
    statuses = [0]
    for number, request in enumerate(requests, start=1):
        if not display.quiet:
            print_status(f"target {request.target.name} ({number} of {len(requests)})")
        request.output.parent.mkdir(parents=True, exist_ok=True)
        row, document, status = _build_for(request, display, outputs, shared)
        if row is None:
            continue
        rows.append(row)
        documents.append(document)
        statuses.append(status)
    if display.as_json:
        print_json(documents)
    elif rows:
        render_targets(rows, ResultConsole())
    return max(statuses)


def _build_for(
    request: Request, display: Display, outputs: Outputs, shared: SharedStages
) -> tuple[TargetRow | None, object, int]:
    """Build for one of several targets; return its row, its document and its exit status."""
    from edgepack.proof import RejectedBundleError
    from edgepack.report.checks import check_error
    from edgepack.report.targets import TargetRow
    from edgepack.runtime.parity.verdict import UNVERIFIED

    name = request.target.name
    try:
        outcome = run_build(request, display, outputs, shared)
    except EdgepackError as error:
        print_failure(error)
        # A missed gate has written its report already.
        if outputs.requested and not isinstance(error, RejectedBundleError):
            outputs.write(check_error(f"build for {name}", error))
        document = {"target": {"name": name}, "error": error.to_json()}
        if isinstance(error, RejectedBundleError):
            rejected = error.outcome
            return TargetRow(name, rejected.report, rejected.path, error.code), document, FAILED
        return TargetRow(name, None, None, error.code), document, error.exit_code
    if outcome is None:
        return None, None, 0
    verdict = str(outcome.report["verdict"])
    if verdict == UNVERIFIED:
        print_doubts(request, outcome)
    status = find_status(verdict, request.allow_unverified)
    return TargetRow(name, outcome.report, outcome.path), outcome.report, status


def format_repeat(request: Request) -> str:
    """Return the command that builds a bundle on real samples instead of random ones."""
    role = "--evaluation" if request.generates_inputs else "--calibration"
    return format_command(("--random-calibration", "--allow-unverified"), (role, "PATH"))


def print_doubts(request: Request, outcome: Outcome) -> None:
    """Print why a bundle is UNVERIFIED, on standard error.

    Also with --quiet and --json: a bundle that was written and an exit code of 1 need a word.
    """
    from edgepack.proof import describe_doubts

    bundle, reasons = shlex.quote(str(outcome.path)), outcome.report["reasons"]
    doubts = describe_doubts(reasons, request.target, bundle, format_repeat(request))
    print_status(f"UNVERIFIED: {doubts}")
