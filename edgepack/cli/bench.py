"""`edgepack bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.boundary import boundary, print_json
from edgepack.cli.loader import through_loader, warn_of_loader
from edgepack.cli.options import (
    as_json,
    bundle_file,
    keep,
    over_ssh,
    refuse_without_device,
    threads,
    trusted,
)
from edgepack.errors import SpecError

if TYPE_CHECKING:
    from edgepack.bundle import Demands


@click.command(short_help="Latency of a BUNDLE, here or on a device.")
@bundle_file
@click.option("--length", type=click.Choice(["smoke", "quick", "normal"]), default="quick")
@click.option("--against", metavar="ONNX", help="Measure another model side by side.")
@click.option("--on", metavar="ssh://[USER@]HOST[:PORT]", help="Measure it on a device instead.")
@click.option(
    "--emulate", "cpus", multiple=True, metavar="CPU", help="With --instructions; repeatable."
)
@click.option(
    "--instructions", is_flag=True, help="Count those of one inference on emulated CPUs: not time."
)
@threads
@keep
@over_ssh
@as_json
@boundary
@trusted
def bench(
    bundle: Path,
    length: str,
    against: str | None,
    on: str | None,
    cpus: tuple[str, ...],
    instructions: bool,
    threads: int,
    as_json: bool,
    demands: Demands,
    **settings: Any,
) -> None:
    """Single-stream latency of a BUNDLE on this machine or a device, by MLPerf's run lengths."""
    if on is None:
        refuse_without_device(**settings)
    if cpus or instructions:
        _count_instructions(bundle, cpus, against, instructions, as_json, demands)
        return
    arguments = ["bench", f"--threads={threads}", "--length", length]
    through_loader(bundle, arguments, as_json, demands, on, against, **settings)


def _count_instructions(
    bundle: Path,
    cpus: tuple[str, ...],
    against: str | None,
    asked: bool,
    as_json: bool,
    demands: Demands,
) -> None:
    """Count a bundle's instructions on emulated CPUs, and show a table for each."""
    from edgepack.bundle import admit
    from edgepack.device import count
    from edgepack.report import render_instructions
    from edgepack.report.console import StderrConsole

    context = click.get_current_context()
    if not asked:
        raise SpecError(
            "emulated-speed",
            "nothing is timed on an emulated CPU",
            why="emulated time says nothing about a device's speed",
            hint=f"--emulate {cpus[0]} --instructions counts instructions; --on ssh://HOST times",
        )
    if not cpus:
        raise click.UsageError("--instructions counts on an emulated CPU: --emulate CPU")
    for name in ("length", "threads", "on"):
        # One inference on one thread is counted; more threads take turns as they like.
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} and --instructions exclude each other")
    console = StderrConsole()
    with admit(bundle, demands) as admitted, console.status("counting") as status:
        warn_of_loader(admitted)
        counts = []
        for cpu in dict.fromkeys(cpus):
            status.update(f"counting on {cpu}")
            counts.append(count(admitted.path, cpu, Path(against) if against else None).to_json())
    document = {"devices": counts, "trust": admitted.to_json()}
    render_instructions(document, console)
    if as_json:
        print_json(document)
