"""`edgepack run`, `inspect` and `sign`: a bundle on samples, its contents, its signature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack import files
from edgepack.cli.boundary import boundary, print_json, show_report
from edgepack.cli.loader import through_loader, warn_of_loader
from edgepack.cli.options import as_json, bundle_file, threads, trusted
from edgepack.runtime.streams import say

if TYPE_CHECKING:
    from edgepack.bundle import Demands


@click.command(short_help="Run a BUNDLE on samples: .npz in, .npz out.")
@bundle_file
@click.option("--input", "source", metavar="NPZ", help="Default: the reference samples.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="NPZ")
@threads
@as_json
@boundary
@trusted
def run(
    bundle: Path,
    source: str | None,
    output: Path,
    threads: int,
    as_json: bool,
    demands: Demands,
) -> None:
    """Run a BUNDLE on samples: an .npz with one array per input, samples along axis 0."""
    arguments = ["run", f"--threads={threads}", "--output", str(output.absolute())]
    if source:
        arguments += ["--input", str(Path(source).absolute())]
    through_loader(bundle, arguments, as_json, demands)


@click.command(short_help="Contents and report of a BUNDLE; nothing is run.")
@bundle_file
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show the report.")
@as_json
@boundary
@trusted
def inspect(bundle: Path, html: Path | None, quiet: bool, as_json: bool, demands: Demands) -> None:
    """Show a BUNDLE: its contents, and the report of its build. No code in it runs.

    The page is drawn anew from the report's figures; the one in the bundle is not used.
    """
    from edgepack.bundle import admit, read_report
    from edgepack.report import render_html, validate

    with admit(bundle, demands) as admitted:
        report = read_report(admitted.path)
    validate(report)
    warn_of_loader(admitted)
    report["bundle"].update(bytes=admitted.size, sha256=admitted.sha256)
    if html:
        files.write(html, render_html(report).encode())
        say(f"written: {html}")
    if not quiet:
        show_report(report)
    if as_json:
        index = dict(admitted.index.raw)
        print_json({"index": index, "report": report, "trust": admitted.to_json()})


@click.command(short_help="Sign a BUNDLE with an SSH key.")
@bundle_file
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    help="A private SSH key; or the public one, where an ssh-agent holds the private one.",
)
@as_json
@boundary
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Write BUNDLE.sig: a signature over the whole file, by `ssh-keygen -Y sign`.

    A bundle that its build rejected is not signed.
    """
    from edgepack import signing
    from edgepack.bundle import admit, require_accepted, write_signature

    fingerprint = signing.fingerprint(key)
    with admit(bundle, private=True) as admitted:
        require_accepted(admitted)
        signature = signing.sign(admitted.path, key)
    path = write_signature(bundle, signature)
    say(f"signed: {path} ({fingerprint})")
    if as_json:
        print_json({"signature": str(path), "key": fingerprint, "sha256": admitted.sha256})
