"""`edgepack targets`."""

from __future__ import annotations

import click

from edgepack.cli.boundary import boundary, print_json
from edgepack.cli.options import as_json
from edgepack.runtime.streams import say, show


@click.group()
def targets() -> None:
    """Target profiles."""


@targets.command("list")
@as_json
@boundary
def targets_list(as_json: bool) -> None:
    """The shipped profiles."""
    from edgepack.spec import target

    found = [target.load(name) for name in target.shipped()]
    for profile in found:
        say(f"{profile.name:<16} {profile.summary}")
    if as_json:
        print_json([{"name": p.name, "summary": p.summary} for p in found])


@targets.command("show")
@click.argument("target")
@as_json
@boundary
def targets_show(target: str, as_json: bool) -> None:
    """One profile, as it is written; `extends` resolved with --json."""
    from edgepack.spec import target as profiles

    profile = profiles.load(target)
    if as_json:
        print_json(profile.document)
    else:
        show(profiles.find(target).read_text(encoding="utf-8"))


@targets.command("check")
@click.argument("target")
@as_json
@boundary
def targets_check(target: str, as_json: bool) -> None:
    """Explain every fault of a profile at once."""
    from edgepack.spec import target as profiles

    profile = profiles.load(target)
    say(f"{profile.name}: valid")
    if as_json:
        print_json({"name": profile.name, "valid": True})
