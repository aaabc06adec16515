"""Commands `edgepack targets`."""

from __future__ import annotations

import click

from edgepack.cli.boundary import boundary, print_json, print_text_or_json
from edgepack.cli.complete import complete_target
from edgepack.cli.options import as_json
from edgepack.runtime.streams import write_result


@click.group()
def targets() -> None:
    """List, show or check target profiles."""


@targets.command("list")
@as_json
@boundary
def targets_list(as_json: bool) -> None:
    """List the shipped profiles, devices under the profile that they extend."""
    from edgepack.spec import target

    document, lines = [], []
    for base, family in target.list_families().items():
        for profile in family:
            document.append(
                {
                    "name": profile.name,
                    "summary": profile.summary,
                    "base": profile.base,
                    "guide": profile.guide,
                }
            )
            # One profile per line, so that `grep` works on them; devices are indented.
            label = profile.name if profile.name == base else f"  {profile.name}"
            lines.append(f"{label:<17} {profile.summary} ({profile.guide})")
    print_text_or_json(as_json, document, *lines)


@targets.command("show")
@click.argument("target", shell_complete=complete_target)
@as_json
@boundary
def targets_show(target: str, as_json: bool) -> None:
    """Show one profile as written; --json resolves `extends`."""
    from edgepack.spec import target as profiles

    profile = profiles.load(target)
    if as_json:
        print_json(profile.document)
    else:
        # As a file, since its comments say why the values are as they are.
        write_result(profiles.find(target).read_text(encoding="utf-8"))


@targets.command("check")
@click.argument("target", shell_complete=complete_target)
@as_json
@boundary
def targets_check(target: str, as_json: bool) -> None:
    """Check a profile, and explain every fault at once."""
    from edgepack.spec import target as profiles

    profile = profiles.load(target)
    document = {"name": profile.name, "valid": True}
    print_text_or_json(as_json, document, f"{profile.name}: valid")
