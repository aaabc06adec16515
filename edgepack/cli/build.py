"""Command `edgepack build`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from edgepack.cli.boundary import (
    TERMINATED,
    boundary,
    find_status,
    format_command,
    print_json,
    print_report,
    print_text_or_json,
)
from edgepack.cli.complete import complete_chain, complete_metric, complete_target
from edgepack.cli.options import allow_unverified, as_json
from edgepack.cli.outputs import Outputs, output_options
from edgepack.errors import EdgepackError
from edgepack.runtime.streams import print_status


def _parse_pairs(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, object]:
    from edgepack.passes import parse_value

    pairs: dict[str, object] = {}
    # "width=32" gives {"width": 32}: values are read as in a chain's options.
    for text in values:
        key, equals, literal = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{text!r} is not key=value")
        pairs[key] = parse_value(literal)
    return pairs


@click.command(short_help="Build a bundle from a trained MODEL.")
@click.argument("model", type=click.Path(path_type=Path))
# The device, and settings of the model from a file.
@click.option(
    "--target",
    required=True,
    metavar="NAME|FILE",
    shell_complete=complete_target,
    help="Build for this profile; `edgepack targets list` shows them.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Read the model's settings from this TOML file.",
)
# Source: architecture and weights of a checkpoint, inputs and axes of a graph.
@click.option(
    "--arch",
    default="",
    metavar="MODULE:FACTORY",
    help="Load a state dict into the module that this factory returns.",
)
@click.option(
    "--arch-arg",
    "arch_args",
    multiple=True,
    callback=_parse_pairs,
    metavar="KEY=VALUE",
    help="Pass a keyword argument to the factory; repeatable.",
)
@click.option(
    "--weights",
    default="",
    metavar="KEY",
    help="Read the weights under this key of a checkpoint (ema, state_dict); default: its EMA.",
)
@click.option(
    "--strip-prefix",
    default="",
    metavar="PREFIX",
    help="Strip this prefix from the weights' names, and ignore names without it.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DTYPE:DIMS",
    help="Declare an input: image:float32:batch,3,224,224; a named axis is dynamic; repeatable.",
)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=SIZE|MIN:OPT:MAX",
    help="Set the usual size of a dynamic axis, or the sizes of a TensorRT engine; repeatable.",
)
# Samples, and the gates that are judged on them.
@click.option(
    "--calibration",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Measure activation ranges on these samples.",
)
@click.option(
    "--evaluation",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Judge quality on these samples; labels are optional.",
)
@click.option(
    "--training",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Train `distill` on these samples; labels are optional.",
)
# Ranges of random numbers fit no real input, so that such a bundle never gets the verdict PASS.
@click.option(
    "--random-calibration",
    is_flag=True,
    help="Calibrate on random data (for trials); the verdict is UNVERIFIED.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME|MODULE:FUNCTION",
    shell_complete=complete_metric,
    help="Judge labelled samples by this metric; default: top1; repeatable, the primary one first.",
)
@click.option(
    "--postprocess",
    default="",
    metavar="FILE.py:FUNCTION",
    help="Decode the outputs for the metrics by this function.",
)
# Labels in another order than the model's classes look like chance, and are refused by default.
@click.option(
    "--allow-chance",
    is_flag=True,
    help="Accept labels that the original matches no better than chance.",
)
@click.option(
    "--chain",
    metavar="PASSES",
    shell_complete=complete_chain,
    help="Run these passes instead of the target's; `none` runs no pass.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Allow this loss of the metric, instead of MLPerf's 99 %.",
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="METRIC.BOUND=VALUE",
    help="Bound a metric: f1.max_drop=1, f1.ratio=0.99, f1.min=0.8, mae.max=2; repeatable.",
)
@click.option("--strict", is_flag=True, help="Apply the target's stricter gates (99.9 %).")
# Permissions, measurements, and the way that the build runs.
@click.option(
    "--trust-pickle", is_flag=True, help="Run pickled code in MODEL; only for files you trust."
)
@click.option(
    "--latency",
    type=click.Choice(["none", "smoke", "quick", "normal"]),
    default="smoke",
    show_default=True,
    help="Set the length of the latency run; `normal` is MLPerf's.",
)
@click.option(
    "--wheels", is_flag=True, help="Include the device's wheels, so that `setup` works offline."
)
@click.option(
    "--no-emulate",
    is_flag=True,
    help="Do not verify on the target's CPUs by emulation; the report says so.",
)
@allow_unverified
@click.option("--refresh", is_flag=True, help="Ignore the cache, and compute every stage anew.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show the stages that would run and the memory they need, and exit.",
)
# Output files and messages.
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.edgepack",
    help="Write the bundle to this file; default: NAME-TARGET.edgepack.",
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Sign the bundle with this SSH key; writes BUNDLE.sig.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
@click.option("-v", "--verbose", count=True, help="Print every note of every stage.")
@as_json
@boundary
@output_options
def build(
    model: Path,
    target: str,
    manifest: Path | None,
    inputs: tuple[str, ...],
    axes: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    verbose: int,
    as_json: bool,
    outputs: Outputs,
    **options: Any,
) -> None:
    """Build a bundle from a trained MODEL: a file, or a Hugging Face folder."""
    # Imported here, as in every command: `--help` must not wait for onnx and torch.
    from edgepack import plan
    from edgepack import request as requests
    from edgepack.spec import manifest as manifests
    from edgepack.spec import target as targets
    from edgepack.spec import tensors

    # Precedence is `resolve`'s: a flag over the manifest, the manifest over the profile.
    settings = manifests.Manifest()
    if manifest:
        settings = manifests.load(manifest)
    request = requests.resolve(
        model,
        targets.load(target),
        settings,
        requests.Flags(
            inputs=tensors.parse_inputs(inputs),
            axes=tensors.parse_axes(axes),
            **options,
        ),
    )
    # Nothing is loaded or written, and `resolve` has refused what contradicts itself already.
    if dry_run:
        document = plan.plan(request)
        print_text_or_json(as_json, document, *plan.describe(document).splitlines())
        return
    from edgepack.ledger import Progress
    from edgepack.passes.training import processes
    from edgepack.pipeline import build as run
    from edgepack.pipeline import list_stages
    from edgepack.progress import SilentProgress, make_progress
    from edgepack.proof import RejectedOutcome, describe_doubts
    from edgepack.report.checks import check_report
    from edgepack.runtime.parity.verdict import UNVERIFIED

    # With several training processes, only the main one draws progress and writes the bundle.
    main = processes.is_main()
    progress: Progress = SilentProgress()
    if main:
        progress = make_progress(quiet, verbose, list_stages(request))
    try:
        outcome = run(request, progress)
    except RejectedOutcome as error:
        if outputs.requested:
            outputs.write(check_report(error.outcome.report))
        raise
    except SystemExit as error:
        if error.code == TERMINATED:
            raise
        # sys.exit(0) in the user's code must not look like a finished build.
        raise EdgepackError(
            "code-exited",
            "the code of the model or of the samples exited during the build",
            why=f"it called sys.exit({error.code!r})",
            hint="raise an exception instead, or return",
        ) from error
    # Another training process than the main one has no outcome.
    if outcome is None:
        return
    if outputs.requested:
        outputs.write(check_report(outcome.report, request.allow_unverified))
    role = "--evaluation" if request.generates_inputs else "--calibration"
    repeat = format_command(("--random-calibration", "--allow-unverified"), (role, "PATH"))
    if as_json:
        print_json(outcome.report)
    elif not quiet:
        print_report(outcome.report, repeat)
    if outcome.report["verdict"] == UNVERIFIED:
        # Also with --quiet and --json: a bundle that was written and an exit code of 1 need a word.
        bundle, reasons = shlex.quote(str(outcome.path)), outcome.report["reasons"]
        doubts = describe_doubts(reasons, request.target, bundle, repeat)
        print_status(f"UNVERIFIED: {doubts}")
        sys.exit(find_status(UNVERIFIED, request.allow_unverified))
