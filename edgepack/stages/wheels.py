"""Stage `wheels`: add the device's Python packages to the bundle, if requested."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgepack import engine
from edgepack.bundle import wheels
from edgepack.bundle.wheels import WheelSets
from edgepack.context import Context, SampleSets
from edgepack.data.stream import preprocessing_of
from edgepack.ledger import Stage


def fetch_wheels(context: Context, samples: SampleSets) -> WheelSets:
    """Return the files of the bundle's wheels/; none unless requested.

    Args:
        context: the build.
        samples: raw evaluation samples need their decoder on the device.

    They are fetched early in a build, so that a missing package fails it before hours are spent;
    those of a further engine too, since only the end of a build knows whether it ships.
    Raises as `edgepack.bundle.wheels.fetch` does.
    """
    target = context.request.target
    if not context.request.wheels:
        return WheelSets()
    with context.ledger.stage("wheels") as stage:
        own = _fetch(context, samples, engine.requirements(target), stage)
        stage.detail(packages=dict(own.packages), bytes=own.bytes)
        alternatives = engine.list_alternatives(target)
        further: Mapping[str, Path] = {}
        # Without latency nothing chooses another engine.
        if alternatives and context.request.latency != "none":
            both = _fetch(context, samples, engine.requirements(target, alternatives), stage)
            stage.detail(further={"packages": dict(both.packages), "bytes": both.bytes})
            further = both.files
        stage.note("the device needs no network: python3 BUNDLE setup DIR")
    return WheelSets(own.files, further)


def _fetch(context: Context, samples: SampleSets, lines: str, stage: Stage) -> wheels.Wheels:
    preprocessing = preprocessing_of(samples.evaluation)
    if preprocessing is not None:
        lines += "".join(f"{line}\n" for line in preprocessing.requirements())
    # pip takes a package that both need once.
    lines += "".join(f"{line}\n" for line in context.request.code.requirements())
    result = wheels.fetch(context.request.target, lines, context.cache)
    if result.cached:
        stage.set(status="cached")
    size = f"{result.bytes / 1e6:.0f} MB"
    stage.note(f"{len(result.packages)} wheels, {size}, for {result.python}")
    return result
