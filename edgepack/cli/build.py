"""`edgepack build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgepack.cli.boundary import TERMINATED, boundary, print_json, show_report
from edgepack.cli.options import as_json
from edgepack.errors import EdgepackError
from edgepack.runtime.streams import say


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    from edgepack.chain import value

    pairs = {}
    for text in values:
        key, equals, written = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{text!r} is not key=value")
        pairs[key] = value(written)
    return pairs


@click.command(short_help="A bundle from a trained MODEL.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="NAME|FILE", help="A profile: targets list.")
@click.option("--manifest", type=click.Path(path_type=Path), help="What the model needs, as TOML.")
@click.option(
    "--arch", default="", metavar="MODULE:FACTORY", help="What a state dict is loaded into."
)
@click.option(
    "--arch-arg",
    "arch_args",
    multiple=True,
    callback=_pairs,
    metavar="KEY=VALUE",
    help="A keyword argument of the factory; repeatable.",
)
@click.option(
    "--weights",
    default="",
    metavar="KEY",
    help="Where a checkpoint holds the weights, such as ema or state_dict; default: its EMA.",
)
@click.option(
    "--strip-prefix",
    default="",
    metavar="PREFIX",
    help="Remove it from the front of the weights' names, and leave all others.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DTYPE:DIMS",
    help="For example image:float32:batch,3,224,224; a name is a dynamic axis.",
)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="Sizes of a dynamic axis that a TensorRT engine is built for; repeatable.",
)
@click.option(
    "--calibration",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Samples that the activations' ranges are measured on.",
)
@click.option(
    "--evaluation",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Samples that quality is judged on, with labels where there are any.",
)
@click.option(
    "--training",
    default="",
    metavar="PATH|MODULE:FUNCTION",
    help="Samples that distill trains on; labels are optional.",
)
@click.option(
    "--random-calibration", is_flag=True, help="Random numbers; the report is not proven."
)
@click.option("--metric", type=click.Choice(["top1", "top5"]), help="Default with labels: top1.")
@click.option(
    "--allow-chance",
    is_flag=True,
    help="Accept labels that the original matches no more often than by guessing.",
)
@click.option("--chain", "passes", metavar="PASSES", help="In place of the target's; or `none`.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Largest loss of the metric, in place of MLPerf's 99 %.",
)
@click.option("--strict", is_flag=True, help="The target's stricter gates (99.9 %).")
@click.option("--trust-pickle", is_flag=True, help="Let code in MODEL run. Only your own files.")
@click.option(
    "--latency",
    type=click.Choice(["none", "smoke", "quick", "normal"]),
    default="smoke",
    show_default=True,
    help="MLPerf run length of the measurement.",
)
@click.option(
    "--wheels", is_flag=True, help="Put the device's wheels in: `setup` there needs no network."
)
@click.option(
    "--no-emulate", is_flag=True, help="Without the proof on the target's CPUs; the report says so."
)
@click.option("--refresh", is_flag=True, help="Take nothing from the cache.")
@click.option("--dry-run", is_flag=True, help="Say what would run, and what it would need.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.edgepack",
    help="Default: NAME-TARGET.edgepack here.",
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Sign the bundle with this SSH key: BUNDLE.sig, beside it.",
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing but warnings and errors.")
@click.option("-v", "--verbose", count=True, help="Every note of every stage.")
@as_json
@boundary
def build(
    model: Path,
    target: str,
    manifest: Path | None,
    inputs: tuple[str, ...],
    axes: tuple[str, ...],
    metric: str | None,
    dry_run: bool,
    quiet: bool,
    verbose: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Build a bundle from a trained MODEL: a file, or a Hugging Face folder."""
    from edgepack import request as requests
    from edgepack.spec import manifest as manifests
    from edgepack.spec import target as targets
    from edgepack.spec import tensors

    request = requests.resolve(
        model,
        targets.load(target),
        manifests.load(manifest) if manifest else manifests.Manifest(),
        inputs=tensors.parse_inputs(inputs),
        axes=tensors.parse_axes(axes),
        metric=metric or "",
        **options,
    )
    if dry_run:
        from edgepack import plan

        planned = plan.plan(request)
        say(*plan.describe(planned).splitlines())
        if as_json:
            print_json(planned)
        return
    from edgepack.build import build as run
    from edgepack.chain.training import processes
    from edgepack.progress import SilentProgress, make_progress

    main = processes.is_main()
    try:
        outcome = run(request, make_progress(quiet, verbose) if main else SilentProgress())
    except SystemExit as error:
        if error.code == TERMINATED:
            raise
        # The user's own code may not end this command as if it had done its work.
        raise EdgepackError(
            "code-exited",
            "the code of the model or of the samples ended the build",
            why=f"it called sys.exit({error.code!r})",
            hint="let it raise an exception, or return",
        ) from error
    if outcome is None:
        return
    if not quiet:
        show_report(outcome.report)
    if as_json:
        print_json(outcome.report)
