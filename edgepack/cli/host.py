"""Commands for this machine: `edgepack doctor`, `emulator`, `cache` and `completion`."""

from __future__ import annotations

import sys

import click

from edgepack.cli.boundary import COULD_NOT_RUN, boundary, print_text_or_json
from edgepack.cli.complete import complete_cpu
from edgepack.cli.options import as_json
from edgepack.runtime.streams import write_result


@click.command(short_help="Check this machine for required tools.")
@as_json
@boundary
def doctor(as_json: bool) -> None:
    """Check this machine for required tools, and show how to install the missing ones."""
    from edgepack import doctor as doctors

    findings = doctors.examine()
    lines = []
    for finding in findings:
        # "ok      torch          2.4.0+cpu"
        mark = "missing"
        if finding.present:
            mark = "ok"
        elif finding.partial:
            mark = "partly"
        lines.append(f"{mark:<7} {finding.name:<14} {finding.detail}")
        if finding.hint:
            lines.append(f"{'':22} {finding.hint}")
    print_text_or_json(as_json, [finding.to_json() for finding in findings], *lines)
    # An absent optional tool only narrows the choice of targets and passes.
    if any(not finding.present and finding.required for finding in findings):
        sys.exit(COULD_NOT_RUN)


@click.group()
def emulator() -> None:
    """Prepare the emulation of other processors."""


@emulator.command("prepare")
@click.argument("cpus", nargs=-1, metavar="[CPU]...", shell_complete=complete_cpu)
@as_json
@boundary
def emulator_prepare(cpus: tuple[str, ...], as_json: bool) -> None:
    """Prepare to emulate CPUs, by default all; ARM downloads about 53 MB.

    Debian's arm64 Python, and arm64 wheels of this host's numpy and onnxruntime, are unpacked in
    edgepack's cache; nothing is installed.
    """
    from edgepack import device
    from edgepack.ledger import Ledger
    from edgepack.progress import make_progress

    device.prepare(cpus, Ledger(make_progress()))
    ready = list(dict.fromkeys(cpus)) or list(device.CPUS)
    print_text_or_json(as_json, {"ready": ready}, f"ready: {', '.join(ready)}")


@click.group()
def cache() -> None:
    """Show or clean the cache of stages and emulators."""


@cache.command("info")
@as_json
@boundary
def cache_info(as_json: bool) -> None:
    """Show the folder and size of the cache."""
    from edgepack.cache import Cache, default_folder, disk_usage

    store = Cache(default_folder())
    document = {
        "folder": str(store.folder), "entries": len(store.entries()), "bytes": store.size(),
        "emulator_bytes": sum(map(disk_usage, store.emulator())),
    }  # fmt: skip
    # The emulator's files belong to no stage, and are not counted among the entries.
    lines = ["{folder}: {entries} entries, {bytes:,} bytes".format(**document)]
    if document["emulator_bytes"]:
        lines.append("the emulator: {emulator_bytes:,} bytes".format(**document))
    print_text_or_json(as_json, document, *lines)


@cache.command("clean")
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=0.0,
    metavar="DAYS",
    help="Delete only entries unused for this many days.",
)
@click.option(
    "--emulator", is_flag=True, help="Delete the downloads of `emulator prepare` as well."
)
@as_json
@boundary
def cache_clean(older_than: float, emulator: bool, as_json: bool) -> None:
    """Delete entries of earlier builds, except those that running builds use."""
    from edgepack.cache import Cache, default_folder

    cleaned = Cache(default_folder()).clean(older_than, emulator=emulator)
    lines = [f"{cleaned.entries} entries deleted, {cleaned.bytes:,} bytes freed"]
    if cleaned.in_use:
        lines.append(f"{cleaned.in_use} entries in use were not deleted")
    print_text_or_json(as_json, cleaned._asdict(), *lines)


@click.command(short_help="Print the completion script of a SHELL.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL: eval "$(edgepack completion bash)"."""
    from click.shell_completion import get_completion_class

    # click's own script asks the program for candidates: see `cli.complete`.
    root = click.get_current_context().find_root().command
    if script := get_completion_class(shell):
        write_result(script(root, {}, "edgepack", "_EDGEPACK_COMPLETE").source() + "\n")
