"""Stage `wheels`: what the device needs to import goes into the bundle, where it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgepack import engine
from edgepack.bundle import wheels
from edgepack.cache import Cache
from edgepack.ledger import Ledger
from edgepack.request import Request


def fetch_wheels(request: Request, cache: Cache, ledger: Ledger) -> Mapping[str, Path]:
    """The files of the bundle's wheels/ by name; none where they were not asked for.

    Early in a build, since what the network does not give is known before hours are spent. Raises
    what `edgepack.bundle.wheels.fetch` does.
    """
    if not request.wheels:
        return {}
    with ledger.stage("wheels") as stage:
        found = wheels.fetch(request.target, engine.requirements(request.target), cache)
        if found.cached:
            stage.set(status="cached")
        stage.note(
            f"{len(found.packages)} wheels, {found.bytes / 1e6:.0f} MB, for {found.python}",
            "the device needs no network: python3 BUNDLE setup DIR",
        )
        stage.detail(packages=dict(found.packages), bytes=found.bytes)
    return found.files
