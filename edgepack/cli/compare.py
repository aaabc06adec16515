"""Command `edgepack compare`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgepack.cli.boundary import FAILED, boundary, print_json
from edgepack.cli.options import as_json, threads


@click.command(short_help="Compare a NEW bundle with an OLD one.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--latency-tolerance",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="Allow p50 to grow by this.",
)
@click.option(
    "--size-tolerance",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="Allow the model and the bundle file to grow by this.",
)
@click.option(
    "--quality-tolerance",
    type=click.FloatRange(0),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Allow the metric to fall by this; without one, the agreement, else the SNR in dB.",
)
@click.option(
    "--latency",
    type=click.Choice(["none", "turns"]),
    default="turns",
    show_default=True,
    help="Measure both by turns on this machine, or not at all.",
)
@threads
@as_json
@boundary
def compare(
    old: Path,
    new: Path,
    latency_tolerance: float,
    size_tolerance: float,
    quality_tolerance: float,
    latency: str,
    threads: int,
    as_json: bool,
) -> None:
    """Compare a NEW bundle with the OLD one that it replaces, for one model and one target.

    Exits with 1 on a regression beyond the tolerances: a worse verdict, a missed or dropped gate,
    a larger file, a slower p50, a worse metric.
    """
    from edgepack.comparison import Tolerances, render_comparison
    from edgepack.comparison import compare as run
    from edgepack.report.console import ResultConsole, StderrConsole

    tolerances = Tolerances(latency_tolerance / 100, size_tolerance / 100, quality_tolerance)
    with StderrConsole().status("comparing"):
        comparison = run(old, new, tolerances, threads=threads, timed=latency != "none")
    if as_json:
        print_json(comparison.to_json())
    else:
        render_comparison(comparison, ResultConsole())
    if comparison.regressions:
        sys.exit(FAILED)
