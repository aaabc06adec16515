"""Commands `edgepack run`, `inspect` and `sign`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack import files
from edgepack.cli.boundary import (
    boundary,
    print_json,
    print_report,
    print_text_or_json,
)
from edgepack.cli.loader import run_loader, warn_of_loader
from edgepack.cli.options import as_json, bundle_file, threads, trust_options
from edgepack.runtime.streams import print_result, print_status

if TYPE_CHECKING:
    from edgepack.bundle import Demands


@click.command(short_help="Run a BUNDLE on samples: .npz in, .npz out.")
@bundle_file
@click.option(
    "--input", "source", metavar="NPZ", help="Read samples from here; default: the reference."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="NPZ",
    help="Write the outputs to this file.",
)
@threads
@as_json
@boundary
@trust_options
def run(
    bundle: Path,
    source: str | None,
    output: Path,
    threads: int,
    as_json: bool,
    demands: Demands,
) -> None:
    """Run a BUNDLE on samples: an .npz with one array per input, samples along axis 0.

    The bundle itself takes pictures, texts and recordings: `python3 BUNDLE run photo.jpg`.
    """
    arguments = ["run", f"--threads={threads}", "--output", str(output.absolute())]
    if source:
        arguments += ["--input", str(Path(source).absolute())]
    run_loader(bundle, arguments, as_json, demands)


@click.command(short_help="Show the contents and report of a BUNDLE.")
@bundle_file
@click.option(
    "--html", type=click.Path(path_type=Path), help="Write the report to this file as an HTML page."
)
@click.option("-q", "--quiet", is_flag=True, help="Do not show the report.")
@as_json
@boundary
@trust_options
def inspect(bundle: Path, html: Path | None, quiet: bool, as_json: bool, demands: Demands) -> None:
    """Show the contents of a BUNDLE and the report of its build; run no code in it.

    The page is rendered from the report's figures; the page in the bundle is not used.
    """
    from edgepack.bundle import admit, read_report
    from edgepack.report import render_html, validate
    from edgepack.runtime.commands.info import describe_contents, describe_variants

    with admit(bundle, demands) as admitted:
        report = validate(read_report(admitted.path))
    warn_of_loader(admitted)
    # A report cannot state the size and hash of the file that it is in.
    report["bundle"]["bytes"] = admitted.size
    report["bundle"]["sha256"] = admitted.sha256
    if html:
        files.write(html, render_html(report).encode())
        print_status(f"written: {html}")
    if as_json:
        index = dict(admitted.index.raw)
        print_json({"index": index, "report": report, "trust": admitted.to_json()})
    elif not quiet:
        print_result(*describe_contents(admitted.index, admitted.sha256), "")
        print_result(*describe_variants(admitted.index, {}), "")
        print_report(report, digests=False)


@click.command(short_help="Sign a BUNDLE with an SSH key.")
@bundle_file
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    help="Sign with this private SSH key, or by its public key if an ssh-agent holds it.",
)
@as_json
@boundary
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign a BUNDLE with `ssh-keygen -Y sign`: write BUNDLE.sig, over the whole file.

    A rejected bundle is not signed.
    """
    from edgepack import signing
    from edgepack.bundle import admit, require_accepted, write_signature

    fingerprint = signing.fingerprint(key)
    # A private copy: the file that is checked is the file that is signed.
    with admit(bundle, private=True) as admitted:
        require_accepted(admitted)
        signature = signing.sign(admitted.path, key)
    path = write_signature(bundle, signature)
    document = {"signature": str(path), "key": fingerprint, "sha256": admitted.sha256}
    print_text_or_json(as_json, document, f"signed: {path} ({fingerprint})")
