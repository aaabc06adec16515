"""Command `edgepack bench`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.boundary import boundary, print_json
from edgepack.cli.complete import complete_cpu
from edgepack.cli.loader import run_loader, warn_of_loader
from edgepack.cli.options import (
    DeviceOptions,
    as_json,
    bundle_file,
    keep,
    refuse_without_device,
    ssh_options,
    threads,
    trust_options,
)
from edgepack.errors import DeprecatedName, SpecError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgepack.bundle import Demands


# Parameter -> option that applies to measurements of time only.
_TIMING = {
    "length": "--latency",
    "old_length": "--length",
    "threads": "--threads",
    "on": "--on",
}


@click.command(short_help="Measure the latency of a BUNDLE.")
@bundle_file
@click.option(
    "--latency",
    "length",
    type=click.Choice(["smoke", "quick", "normal"]),
    default="quick",
    show_default=True,
    help="Set the run length; `normal` is MLPerf's.",
)
@click.option(
    "--length",
    "old_length",
    type=click.Choice(["smoke", "quick", "normal"]),
    hidden=True,
)
@click.option("--against", metavar="ONNX", help="Measure another model side by side.")
@click.option("--on", metavar="ssh://[USER@]HOST[:PORT]", help="Measure on a device instead.")
@click.option(
    "--emulate",
    "cpus",
    multiple=True,
    metavar="CPU",
    shell_complete=complete_cpu,
    help="Count on this emulated CPU (with --instructions); repeatable.",
)
@click.option(
    "--instructions",
    is_flag=True,
    help="Count the instructions of one inference on emulated CPUs, instead of time.",
)
@threads
@keep
@ssh_options
@as_json
@boundary
@trust_options
def bench(
    bundle: Path,
    length: str,
    old_length: str | None,
    against: str | None,
    on: str | None,
    cpus: tuple[str, ...],
    instructions: bool,
    threads: int,
    as_json: bool,
    demands: Demands,
    **settings: Unpack[DeviceOptions],
) -> None:
    """Measure the single-stream latency of a BUNDLE on this machine or on a device."""
    if on is None:
        refuse_without_device(**settings)
    if old_length:
        warnings.warn("--length is now called --latency", DeprecatedName, stacklevel=2)
        length = old_length
    if cpus or instructions:
        _count_instructions(bundle, cpus, against, instructions, as_json, demands)
        return
    # By its old name, which the loaders of older bundles know as well.
    arguments = ["bench", f"--threads={threads}", "--length", length]
    run_loader(bundle, arguments, as_json, demands, on, against, **settings)


def _count_instructions(
    bundle: Path,
    cpus: tuple[str, ...],
    against: str | None,
    instructions: bool,
    as_json: bool,
    demands: Demands,
) -> None:
    """Count a bundle's instructions on emulated CPUs, and print a table for each."""
    from edgepack.bundle import admit
    from edgepack.device import count
    from edgepack.report import render_instructions
    from edgepack.report.console import ResultConsole, StderrConsole

    context = click.get_current_context()
    if not instructions:
        raise SpecError(
            "emulated-speed",
            "latency is not measured on emulated CPUs",
            why="emulated time does not predict a device's speed",
            hint=f"--emulate {cpus[0]} --instructions counts instructions; "
            "--on ssh://HOST measures latency on a device",
        )
    if not cpus:
        raise click.UsageError("--instructions needs an emulated CPU: --emulate CPU")
    # One inference on one thread is counted: several threads interleave at random.
    for name, option in _TIMING.items():
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{option} and --instructions exclude each other")
    progress = StderrConsole().status("counting")
    with admit(bundle, demands) as admitted, progress as status:
        warn_of_loader(admitted)
        counts = []
        original = Path(against) if against else None
        for cpu in dict.fromkeys(cpus):
            status.update(f"counting on {cpu}")
            counts.append(count(admitted.path, cpu, original).to_json())
    document = {"devices": counts, "trust": admitted.to_json()}
    if as_json:
        print_json(document)
    else:
        render_instructions(document, ResultConsole())
