"""`edgepack run` and `edgepack inspect`: a bundle on samples, and what is in it."""

from __future__ import annotations

from pathlib import Path

import click

from edgepack import files
from edgepack.cli.boundary import boundary, print_json, show_report
from edgepack.cli.loader import through_loader
from edgepack.cli.options import as_json, bundle_file, threads


@click.command(short_help="Run a BUNDLE on samples: .npz in, .npz out.")
@bundle_file
@click.option("--input", "source", metavar="NPZ", help="Default: the reference samples.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="NPZ")
@threads
@as_json
@boundary
def run(bundle: Path, source: str | None, output: Path, threads: int, as_json: bool) -> None:
    """Run a BUNDLE on samples: an .npz with one array per input, samples along axis 0."""
    arguments = ["run", f"--threads={threads}", "--output", str(output.absolute())]
    if source:
        arguments += ["--input", str(Path(source).absolute())]
    through_loader(bundle, arguments, as_json)


@click.command(short_help="Contents and report of a BUNDLE; nothing is run.")
@bundle_file
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show the report.")
@as_json
@boundary
def inspect(bundle: Path, html: Path | None, quiet: bool, as_json: bool) -> None:
    """Show a BUNDLE: its contents, and the report of its build. Nothing of it is run."""
    from edgepack.bundle import inspect as read
    from edgepack.report import validate

    document = read(bundle)
    validate(document["report"])
    if html:
        files.write(html, document.pop("html"))
        click.echo(f"written: {html}", err=True)
    document.pop("html", None)
    if not quiet:
        show_report(document["report"])
    if as_json:
        print_json(document)
