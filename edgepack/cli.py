"""The command line: parse, call, print. The one error boundary.

Human text goes to stderr, `--json` to stdout. Exit status: 0 done, 1 a gate was missed, 2 it
could not run. Every option may also come from the environment: EDGEPACK_BUILD_TARGET is
`build --target`, and an option of a group's command has both names, EDGEPACK_CACHE_CLEAN_JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from edgepack import __version__, files
from edgepack.errors import EdgepackError, SpecError

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
FAILED, COULD_NOT_RUN, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, sort_keys=True, allow_nan=False))


def _fail(error: EdgepackError, as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"error": error.to_json()})
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    first, *rest = str(error).splitlines()
    click.secho(first, err=True, fg="red" if colour else None, bold=colour)
    if rest:
        click.echo("\n".join(rest), err=True)
    sys.exit(error.exit_code)


def boundary(command: Callable[..., None]) -> Callable[..., None]:
    """The one place where errors are printed and become exit statuses."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except EdgepackError as error:
            _fail(error, bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            _fail(files.failed(error), bool(kwargs.get("as_json")))
        except MemoryError:
            _fail(
                EdgepackError(
                    "out-of-memory",
                    "this machine has too little memory for the build",
                    hint="edgepack build --dry-run tells how much is needed",
                ),
                bool(kwargs.get("as_json")),
            )
        except Exception as error:  # noqa: BLE001
            # Python would exit with 1, which is what a missed gate means.
            traceback.print_exc()
            _fail(
                EdgepackError(
                    "internal-error",
                    "edgepack itself failed; this is a fault of its own",
                    why=f"{type(error).__name__}: {error}",
                    hint="report it with the lines above; nothing was written",
                ),
                bool(kwargs.get("as_json")),
            )

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
threads = click.option(
    "--threads", type=click.IntRange(0), default=0, help="Default: every physical core."
)
bundle_file = click.argument("bundle", type=click.Path(path_type=Path))


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="edgepack")
def cli() -> None:
    """From a trained model to one file that runs on the device and proves itself there."""


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    from edgepack.chain import value

    pairs = {}
    for text in values:
        key, equals, written = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{text!r} is not key=value")
        pairs[key] = value(written)
    return pairs


@cli.command()
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
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DTYPE:DIMS",
    help="For example image:float32:batch,3,224,224; a name is a dynamic axis.",
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
    "--random-calibration", is_flag=True, help="Random numbers; the report is not proven."
)
@click.option("--metric", type=click.Choice(["top1", "top5"]), help="Default with labels: top1.")
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
@click.option("--refresh", is_flag=True, help="Take nothing from the cache.")
@click.option("--dry-run", is_flag=True, help="Say what would run, and what it would need.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.edgepack",
    help="Default: NAME-TARGET.edgepack here.",
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
        inputs=tuple(map(tensors.parse, inputs)),
        metric=metric or "",
        **options,
    )
    if dry_run:
        from edgepack import plan

        planned = plan.plan(request)
        click.echo(plan.describe(planned), err=True)
        if as_json:
            _print_json(planned)
        return
    from edgepack.build import build as run
    from edgepack.progress import make_progress

    outcome = run(request, make_progress(quiet, verbose))
    if not quiet:
        _show(outcome.report)
    if as_json:
        _print_json(outcome.report)


def _show(document: Any) -> None:
    from rich.console import Console

    from edgepack.report import render_terminal

    render_terminal(document, Console(stderr=True))


def _through_loader(bundle: Path, arguments: list[str], as_json: bool) -> None:
    """Run a bundle through its own loader, isolated, and show what it says."""
    from edgepack.bundle import check
    from edgepack.device import Local

    # Python would run any file as a script.
    check(bundle)
    with Local() as host:
        finished = host.run(host.put(bundle), *arguments, *(["--json"] if as_json else []))
    click.echo(finished.stderr, err=True, nl=False)
    sys.stdout.write(finished.stdout.decode("utf-8", "replace"))
    sys.stdout.flush()
    # A loader that died by a signal could not run.
    sys.exit(finished.status if finished.status in (0, 1, 2) else COULD_NOT_RUN)


@cli.command()
@bundle_file
@click.option(
    "--emulate",
    "cpus",
    multiple=True,
    metavar="CPU",
    help="Prove it on an emulated CPU instead; repeat it for more.",
)
@threads
@as_json
@boundary
def verify(bundle: Path, cpus: tuple[str, ...], threads: int, as_json: bool) -> None:
    """Prove a BUNDLE on this machine, through the loader that ships in it."""
    if cpus:
        _on_devices(bundle, cpus, threads, as_json)
    else:
        _through_loader(bundle, ["verify", f"--threads={threads}"], as_json)


def _on_devices(bundle: Path, cpus: tuple[str, ...], threads: int, as_json: bool) -> None:
    """Verify a bundle on several devices, and show a row for each."""
    from contextlib import ExitStack

    from rich.console import Console

    from edgepack import device
    from edgepack.bundle import check
    from edgepack.report import render_matrix

    check(bundle)
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        devices = [stack.enter_context(device.Emulated(cpu)) for cpu in dict.fromkeys(cpus)]
        status = stack.enter_context(console.status("emulating"))
        found = device.verify(
            bundle, devices, threads=threads, begin=lambda d: status.update(f"on {d.name}")
        )
    render_matrix(found, console)
    if as_json:
        _print_json(found)
    if any("error" in column for column in found["devices"]):
        sys.exit(COULD_NOT_RUN)
    sys.exit(0 if found["passed"] else FAILED)


@cli.command()
@bundle_file
@click.option("--input", "source", metavar="NPZ", help="Default: the reference samples.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="NPZ")
@threads
@as_json
@boundary
def run(bundle: Path, source: str | None, output: Path, threads: int, as_json: bool) -> None:
    """Run a BUNDLE on samples: an .npz with one array per input, samples along axis 0."""
    arguments = ["run", f"--threads={threads}", "--output", str(output.absolute())]
    if source:
        arguments += ["--input", str(Path(source).absolute())]
    _through_loader(bundle, arguments, as_json)


@cli.command()
@bundle_file
@click.option("--length", type=click.Choice(["smoke", "quick", "normal"]), default="quick")
@click.option("--against", metavar="ONNX", help="Measure another model side by side.")
@threads
@as_json
@boundary
def bench(bundle: Path, length: str, against: str | None, threads: int, as_json: bool) -> None:
    """Single-stream latency of a BUNDLE on this machine, by MLPerf's run lengths."""
    arguments = ["bench", f"--threads={threads}", "--length", length]
    if against:
        arguments += ["--against", str(Path(against).absolute())]
    _through_loader(bundle, arguments, as_json)


@cli.command()
@bundle_file
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page.")
@click.option("-q", "--quiet", is_flag=True, help="Do not show the report.")
@as_json
@boundary
def inspect(bundle: Path, html: Path | None, quiet: bool, as_json: bool) -> None:
    """Show a BUNDLE: its contents, and the report of its build. Nothing of it is run."""
    from edgepack.bundle import inspect as read
    from edgepack.report import validate

    document = read(bundle)
    validate(document["report"])
    if html:
        files.write(html, document.pop("html"))
        click.echo(f"written: {html}", err=True)
    document.pop("html", None)
    if not quiet:
        _show(document["report"])
    if as_json:
        _print_json(document)


@cli.group()
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
        click.echo(f"{profile.name:<16} {profile.summary}", err=True)
    if as_json:
        _print_json([{"name": p.name, "summary": p.summary} for p in found])


@targets.command("show")
@click.argument("target")
@as_json
@boundary
def targets_show(target: str, as_json: bool) -> None:
    """One profile, as it is written; `extends` resolved with --json."""
    from edgepack.spec import target as profiles

    profile = profiles.load(target)
    if as_json:
        _print_json(profile.document)
    else:
        click.echo(profiles.find(target).read_text(encoding="utf-8"), nl=False)


@targets.command("check")
@click.argument("target")
@as_json
@boundary
def targets_check(target: str, as_json: bool) -> None:
    """Explain every fault of a profile at once."""
    from edgepack.spec import target as profiles

    profile = profiles.load(target)
    click.echo(f"{profile.name}: valid", err=True)
    if as_json:
        _print_json({"name": profile.name, "valid": True})


@cli.command()
@as_json
@boundary
def doctor(as_json: bool) -> None:
    """What this machine has, what it lacks, and which command brings it."""
    from edgepack import doctor as doctors

    findings = doctors.examine()
    for finding in findings:
        mark = "ok     " if finding.present else "missing"
        click.echo(f"{mark} {finding.name:<14} {finding.detail}", err=True)
        if finding.hint:
            click.echo(f"{'':22} {finding.hint}", err=True)
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    if any(not finding.present and finding.required for finding in findings):
        sys.exit(COULD_NOT_RUN)


@cli.group()
def emulator() -> None:
    """Processors that are not here."""


@emulator.command("prepare")
@click.argument("cpus", nargs=-1, metavar="[CPU]...")
@as_json
@boundary
def emulator_prepare(cpus: tuple[str, ...], as_json: bool) -> None:
    """Make ready to emulate CPUs, by default all: ARM needs a download of some 55 MB.

    Debian's arm64 Python and the wheels of this host's numpy and onnxruntime are unpacked in
    edgepack's cache; nothing is installed.
    """
    from edgepack import device
    from edgepack.ledger import Ledger
    from edgepack.progress import make_progress

    device.prepare(cpus, Ledger(make_progress()))
    ready = list(dict.fromkeys(cpus)) or list(device.CPUS)
    click.echo(f"ready: {', '.join(ready)}", err=True)
    if as_json:
        _print_json({"ready": ready})


@cli.group()
def cache() -> None:
    """The cache of stages."""


@cache.command("info")
@as_json
@boundary
def cache_info(as_json: bool) -> None:
    """Where the cache is, and how large."""
    from edgepack.cache import Cache, default_folder

    kept = Cache(default_folder())
    document = {
        "folder": str(kept.folder), "entries": len(kept.entries()), "bytes": kept.size(),
    }  # fmt: skip
    click.echo("{folder}: {entries} entries, {bytes:,} bytes".format(**document), err=True)
    if as_json:
        _print_json(document)


@cache.command("clean")
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=0.0,
    metavar="DAYS",
    help="Only what was not used for so many days.",
)
@as_json
@boundary
def cache_clean(older_than: float, as_json: bool) -> None:
    """Delete what earlier builds left."""
    from edgepack.cache import Cache, default_folder

    count, freed = Cache(default_folder()).clean(older_than)
    click.echo(f"{count} entries deleted, {freed:,} bytes freed", err=True)
    if as_json:
        _print_json({"entries": count, "bytes": freed})


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL: eval "$(edgepack completion bash)"."""
    from click.shell_completion import get_completion_class

    if script := get_completion_class(shell):
        click.echo(script(cli, {}, "edgepack", "_EDGEPACK_COMPLETE").source())


def _name_variables(group: click.Group, prefix: str) -> None:
    """Name the environment variable of every option after the option as it is written."""
    for name, command in group.commands.items():
        path = f"{prefix}_{name}"
        if isinstance(command, click.Group):
            _name_variables(command, path)
        for option in command.params:
            if isinstance(option, click.Option):
                written = max(option.opts, key=len).lstrip("-")
                option.envvar = f"{path}_{written}".replace("-", "_").upper()


_name_variables(cli, "EDGEPACK")


def _terminated(*_: object) -> NoReturn:
    # As an exception, so that temporary files go and the loader's process ends.
    sys.exit(TERMINATED)


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(cli.main(prog_name="edgepack", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(COULD_NOT_RUN)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgepack"
        fault = SpecError("usage", error.format_message(), hint=f"{command} --help")
        _fail(fault, "--json" in sys.argv)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read has gone; what Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(COULD_NOT_RUN)
