"""Stage `wheels`: add the device's Python packages to the bundle, if requested."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgepack import engine
from edgepack.bundle import wheels
from edgepack.context import Context, SampleSets
from edgepack.data.stream import preprocessing_of


def fetch_wheels(context: Context, samples: SampleSets) -> Mapping[str, Path]:
    """Return the files of the bundle's wheels/ by name; none unless requested.

    Args:
        context: the build.
        samples: raw evaluation samples need their decoder on the device.

    They are fetched early in a build, so that a missing package fails it before hours are spent.
    Raises as `edgepack.bundle.wheels.fetch` does.
    """
    request = context.request
    if not request.wheels:
        return {}
    with context.ledger.stage("wheels") as stage:
        lines = engine.requirements(request.target)
        preprocessing = preprocessing_of(samples.evaluation)
        if preprocessing is not None:
            lines += "".join(f"{line}\n" for line in preprocessing.requirements())
        # pip takes a package that both need once.
        lines += "".join(f"{line}\n" for line in request.code.requirements())
        result = wheels.fetch(request.target, lines, context.cache)
        if result.cached:
            stage.set(status="cached")
        stage.note(
            f"{len(result.packages)} wheels, {result.bytes / 1e6:.0f} MB, for {result.python}",
            "the device needs no network: python3 BUNDLE setup DIR",
        )
        stage.detail(packages=dict(result.packages), bytes=result.bytes)
    return result.files
