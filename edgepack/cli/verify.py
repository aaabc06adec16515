"""Command `edgepack verify`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.boundary import boundary, find_status, print_json
from edgepack.cli.complete import complete_cpu
from edgepack.cli.loader import warn_of_leftovers, warn_of_loader
from edgepack.cli.options import (
    DeviceOptions,
    allow_unverified,
    as_json,
    bundle_file,
    keep,
    refuse_without_device,
    ssh_options,
    threads,
    trust_options,
)
from edgepack.cli.outputs import Outputs, output_options
from edgepack.errors import DeviceError, EdgepackError
from edgepack.runtime.streams import print_result, print_status

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgepack.bundle import Admitted, Demands
    from edgepack.runtime.documents import Verdict


@click.command(short_help="Verify a BUNDLE on this machine or on devices.")
@bundle_file
@click.option(
    "--on",
    multiple=True,
    metavar="ssh://[USER@]HOST[:PORT]",
    help="Verify on a device instead; repeatable.",
)
@click.option(
    "--emulate",
    "cpus",
    multiple=True,
    metavar="CPU",
    shell_complete=complete_cpu,
    help="Verify on an emulated CPU instead; repeatable.",
)
@threads
@keep
@ssh_options
@allow_unverified
@as_json
@boundary
@output_options
@trust_options
def verify(
    bundle: Path,
    on: tuple[str, ...],
    cpus: tuple[str, ...],
    threads: int,
    allow_unverified: bool,
    as_json: bool,
    demands: Demands,
    outputs: Outputs,
    **settings: Unpack[DeviceOptions],
) -> None:
    """Verify a BUNDLE on this machine or on devices.

    On this machine and on emulated CPUs, edgepack's own loader reads the bundle and runs no
    code in it; a device runs the bundle itself.
    """
    from edgepack.bundle import admit
    from edgepack.report.checks import check_devices

    # Without --on, a device's --python or --timeout would be ignored without a word.
    if not on:
        refuse_without_device(**settings)
    with admit(bundle, demands) as admitted:
        if on or cpus:
            matrix = _verify_on_devices(admitted, on, cpus, threads, as_json, **settings)
            columns, verdict = matrix["devices"], matrix["verdict"]
        else:
            document = _verify_here(admitted, bundle, threads, as_json)
            columns = [{"name": "this machine", "verdict": document}]
            verdict = document["verdict"]
    if outputs.requested:
        title = f"{admitted.index.name} for {admitted.index.target}"
        outputs.write(check_devices(title, columns, verdict, allow_unverified))
    sys.exit(find_status(verdict, allow_unverified))


def _verify_here(bundle: Admitted, original: Path, threads: int, as_json: bool) -> Verdict:
    """Verify a bundle on this machine, and print its verdict.

    Args:
        bundle: the bundle, perhaps a private copy.
        original: the path that the user gave, beside which an engine may be sealed.
        threads: threads within an operator; 0 takes every physical core.
        as_json: print a document.
    """
    from edgepack import device
    from edgepack.bundle import copy_sealed
    from edgepack.runtime.cli import describe_verdict
    from edgepack.runtime.commands.verify import refuses_code
    from edgepack.runtime.device.variants import format_fallback

    warn_of_loader(bundle)
    if refuses_code(bundle.index, str(bundle.path)):
        print_status(
            "the inputs are those that the build stored: only the bundle itself runs its own code, "
            f"python3 {original} verify"
        )
    with device.Local() as host:
        if bundle.path != original:
            copy_sealed(original, bundle.path)
        try:
            verdict = device.verify_bundle(host, host.put(bundle.path), f"--threads={threads}")
        except EdgepackError as error:
            if error.code != "device-arch":
                raise
            hint = _suggest_device(original, bundle)
            raise DeviceError(error.code, error.what, why=error.why, hint=hint) from error
    print_status(*format_fallback(verdict["variant"]))
    if as_json:
        print_json({**verdict, "trust": bundle.to_json()})
    else:
        print_result(*describe_verdict(verdict))
    return verdict


def _suggest_device(path: Path, bundle: Admitted) -> str:
    """Return the commands that verify a bundle for another architecture than this machine's."""
    from edgepack.device import suggest_emulation

    quoted = shlex.quote(str(path))
    emulate = suggest_emulation(quoted, bundle.index.device.get("arch", ""))
    return f"{emulate}\nedgepack verify {quoted} --on ssh://HOST".lstrip()


def _verify_on_devices(
    bundle: Admitted,
    on: tuple[str, ...],
    cpus: tuple[str, ...],
    threads: int,
    as_json: bool,
    **settings: Unpack[DeviceOptions],
) -> dict[str, Any]:
    """Verify a bundle on several devices, print a row for each, and return the columns."""
    from contextlib import ExitStack

    from edgepack import device
    from edgepack.device import ssh
    from edgepack.report import render_matrix
    from edgepack.report.console import ResultConsole, StderrConsole

    # dict.fromkeys drops repeated values and keeps the order of the command line.
    addresses = [ssh.parse(url) for url in dict.fromkeys(on)]
    ssh_settings = ssh.Settings(**settings)
    # A device runs the loader in the bundle; an emulator runs edgepack's own.
    runs_on, activity = "", "emulating"
    if on:
        runs_on, activity = "a device", "connecting"
    warn_of_loader(bundle, runs_on)
    status = StderrConsole().status(activity)
    with ExitStack() as stack:
        remotes = [device.Ssh(address, ssh_settings, status.update) for address in addresses]
        stack.callback(warn_of_leftovers, remotes)
        devices: list[device.Ssh | device.Emulated] = [*map(stack.enter_context, remotes)]
        devices += [stack.enter_context(device.Emulated(cpu)) for cpu in dict.fromkeys(cpus)]
        stack.enter_context(status)
        matrix = device.verify(
            bundle.path, devices, threads=threads, begin=lambda d: status.update(f"on {d.name}")
        )
    matrix["trust"] = bundle.to_json()
    if as_json:
        print_json(matrix)
    else:
        render_matrix(matrix, ResultConsole())
    return matrix
