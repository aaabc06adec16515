"""Command `edgepack build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.boundary import (
    boundary,
    find_status,
    print_json,
    print_report,
    print_text_or_json,
)
from edgepack.cli.complete import complete_chain, complete_metric, complete_target
from edgepack.cli.options import allow_unverified, as_json
from edgepack.cli.outputs import Outputs, output_options
from edgepack.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from edgepack.cli.several import Display
    from edgepack.request import Request


# Headings of `--help`, each with the names of its parameters.
SECTIONS = {
    "Target": ("target_names", "chain", "optimize"),
    "Model": (
        "manifest", "arch", "arch_args", "weights", "strip_prefix", "inputs", "axes",
        "trust_pickle",
    ),
    "Samples": (
        "calibration", "evaluation", "training", "samples", "split", "split_seed", "pictures",
        "classes", "random_calibration",
    ),
    "Quality": ("metrics", "postprocess", "max_drop", "gates", "strict", "allow_chance"),
    "Verification": ("latency", "no_emulate", "allow_unverified"),
    "Bundle": ("output", "force", "wheels", "sign"),
    "Run": ("dry_run", "refresh"),
    "Messages": ("quiet", "verbose", "as_json", "junit", "summary", "style"),
}  # fmt: skip


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


@click.command(
    cls=SectionedCommand, sections=SECTIONS, short_help="Build a bundle from a trained MODEL."
)
@click.argument("model", type=click.Path(path_type=Path))
# The device, and settings of the model from a file.
@click.option(
    "--target",
    "target_names",
    required=True,
    multiple=True,
    metavar="NAME|FILE",
    shell_complete=complete_target,
    help="Build for this profile; `edgepack targets list` shows them; repeatable.",
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
@click.option(
    "--samples",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Use one source for calibration and evaluation: with parts (train, val), or --split.",
)
@click.option(
    "--split",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Evaluate on this share of --samples, of every class, and calibrate on the others.",
)
@click.option(
    "--split-seed",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Choose other samples by this seed; default: 0.",
)
@click.option(
    "--pictures",
    default="",
    metavar="KEY=VALUE,...",
    help="State the preprocessing of pictures: resize=256,crop=224,normalize=imagenet.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the names of the classes from this file, one a line, in the model's order.",
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
    help="Decode the outputs by this function, for the metrics and on the device.",
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
    "--optimize",
    default="",
    metavar="GOAL|WEIGHTS",
    help="Choose the form by latency (default), size, memory or none, or by weights: "
    "latency=1,size=0.5.",
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
    help="Write the bundle to this file; default: {name}-{target}.edgepack; for several targets a "
    "folder, or a path with {target}.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite a bundle with other content at the default path.",
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
    target_names: tuple[str, ...],
    manifest: Path | None,
    inputs: tuple[str, ...],
    axes: tuple[str, ...],
    output: Path | None,
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
    from edgepack.cli.several import Display, build_each, spread_output
    from edgepack.spec import manifest as manifests
    from edgepack.spec import target as targets
    from edgepack.spec import tensors

    # Precedence is `resolve`'s: a flag over the manifest, the manifest over the profile.
    settings = manifests.Manifest()
    if manifest:
        settings = manifests.load(manifest)
    flags = requests.Flags(
        inputs=tensors.parse_inputs(inputs),
        axes=tensors.parse_axes(axes),
        output=spread_output(output, target_names),
        **options,
    )
    profiles = [targets.load(name) for name in target_names]
    resolved = [requests.resolve(model, profile, settings, flags) for profile in profiles]
    # Nothing is loaded or written, and `resolve` has refused what contradicts itself already.
    if dry_run:
        documents = [plan.plan(request) for request in resolved]
        lines: list[str] = []
        for document in documents:
            lines += plan.describe(document).splitlines()
        print_text_or_json(as_json, documents if documents[1:] else documents[0], *lines)
        return
    if resolved[1:]:
        display = Display(quiet, verbose, as_json)
        sys.exit(build_each(resolved, display, outputs))
    _build_one(resolved[0], Display(quiet, verbose, as_json), outputs)


def _build_one(request: Request, display: Display, outputs: Outputs) -> None:
    """Build for one target, and print its report."""
    from edgepack.cli.several import format_repeat, print_doubts, run_build
    from edgepack.runtime.parity.verdict import UNVERIFIED

    outcome = run_build(request, display, outputs)
    # Another training process than the main one has no outcome.
    if outcome is None:
        return
    if display.as_json:
        print_json(outcome.report)
    elif not display.quiet:
        print_report(outcome.report, format_repeat(request))
    if outcome.report["verdict"] == UNVERIFIED:
        print_doubts(request, outcome)
        sys.exit(find_status(UNVERIFIED, request.allow_unverified))
