"""Command `edgepack serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.boundary import COULD_NOT_RUN, boundary
from edgepack.cli.loader import warn_of_loader
from edgepack.cli.options import as_json, bundle_file, threads, trust_options
from edgepack.runtime.streams import result_stream

if TYPE_CHECKING:
    from edgepack.bundle import Demands


@click.command(short_help="Serve a BUNDLE over HTTP, with a page for the browser.")
@bundle_file
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Listen on this port; 0 takes a free one.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Answer under this host name, too; repeatable.",
)
@click.option(
    "--max-request",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="MB",
    help="Limit the size of a request.",
)
@threads
@as_json
@boundary
@trust_options
def serve(
    bundle: Path,
    host: str,
    port: int,
    names: tuple[str, ...],
    max_request: int,
    threads: int,
    as_json: bool,
    demands: Demands,
) -> None:
    """Serve a BUNDLE on this machine until Ctrl+C.

    The server speaks the Open Inference Protocol, version 2, and shows a page on which one can
    try the model. It is the one of `python3 BUNDLE serve`; no code in the bundle runs.
    """
    from edgepack.bundle import admit, copy_sealed
    from edgepack.device import Local

    arguments = [
        "serve", f"--host={host}", f"--port={port}", f"--max-request={max_request}",
        f"--threads={threads}", *(f"--allow-host={name}" for name in names),
    ]  # fmt: skip
    if as_json:
        arguments.append("--json")
    with admit(bundle, demands) as admitted, Local() as machine:
        warn_of_loader(admitted)
        # A private copy also needs the engine or the choice that is sealed beside the original.
        if admitted.path != bundle:
            copy_sealed(bundle, admitted.path)
        path = machine.put(admitted.path)
        status = machine.serve(path, *arguments, stdout=result_stream().fileno())
    # A loader that was killed by a signal has a negative status.
    sys.exit(COULD_NOT_RUN if status < 0 else status)
