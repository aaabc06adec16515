"""Command `edgepack init`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from edgepack.cli.boundary import boundary, print_text_or_json
from edgepack.cli.complete import complete_target
from edgepack.cli.options import as_json


@click.command(short_help="Draft a manifest for a MODEL.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Use these samples: an .npz, an .npy, texts or a folder, also of pictures or recordings.",
)
@click.option(
    "--target",
    default="cpu-fbgemm",
    show_default=True,
    metavar="NAME|FILE",
    shell_complete=complete_target,
    help="Show the defaults of this profile.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Write the manifest to this file; default: NAME.toml.",
)
@as_json
@boundary
def init(model: Path, data: Path | None, target: str, output: Path | None, as_json: bool) -> None:
    """Draft a manifest for a MODEL from what its file and the data say.

    Every other setting is written as a comment with its default. An existing file is not
    overwritten, and no code in the model's file is run.
    """
    from edgepack import draft
    from edgepack.spec import target as targets

    profile = targets.load(target)
    # Refused before the model is read, which may take a minute.
    path = output or Path(f"{draft.name_model(model)}.toml")
    draft.refuse_existing(path)
    draft.write_manifest(draft.draft_manifest(model, data, profile, path), path)
    words = ["edgepack", "build", str(model), "--target", target, "--manifest", str(path)]
    command = shlex.join(words)
    document = {"manifest": str(path), "build": command}
    print_text_or_json(as_json, document, f"written: {path}", f"next: {command}")
