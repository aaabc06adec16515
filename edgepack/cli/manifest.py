"""Commands `edgepack manifest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.boundary import boundary, print_json, print_text_or_json
from edgepack.cli.complete import complete_target
from edgepack.cli.options import as_json
from edgepack.runtime.streams import write_result

if TYPE_CHECKING:
    from edgepack.spec.manifest import Manifest
    from edgepack.spec.target import Target


@click.group()
def manifest() -> None:
    """Show the schema of manifests, or check a manifest."""


@manifest.command("schema")
@click.option("--target", is_flag=True, help="Print the schema of target profiles instead.")
@as_json
@boundary
def manifest_schema(target: bool, as_json: bool) -> None:
    """Print the JSON Schema of manifests, with a description of every key."""
    from edgepack.spec import toml_reader

    schema = toml_reader.read_schema("target" if target else "manifest")
    if as_json:
        print_json(schema)
    else:
        write_result(json.dumps(schema, indent=2) + "\n")


@manifest.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME|FILE",
    shell_complete=complete_target,
    help="Check the options of the passes together with those of this profile.",
)
@as_json
@boundary
def manifest_check(file: Path, target: str | None, as_json: bool) -> None:
    """Check a manifest, with the options of its passes, and explain every fault at once."""
    from edgepack.metrics.catalogue import check_metrics
    from edgepack.spec import manifest as manifests
    from edgepack.spec import target as targets

    settings = manifests.load(file)
    check_metrics(settings.metrics)
    _check_passes(settings, targets.load(target) if target else None)
    document = {"name": settings.name or file.stem, "valid": True}
    print_text_or_json(as_json, document, f"{file}: valid")


def _check_passes(settings: Manifest, target: Target | None) -> None:
    """Check the options that a manifest sets for passes, and its chain. Raises ChainError."""
    from edgepack import passes

    # Passes outside the chain are checked too; otherwise a misspelt option in their table would
    # go unnoticed.
    for name in passes.list_names():
        table = passes.find_pass(name).table
        options = settings.read_table(table)
        if options and target:
            options = {**target.read_table(table), **options}
        if options:
            passes.Step(name, options).read()
    passes.check_chain(passes.parse_chain(settings.chain))
