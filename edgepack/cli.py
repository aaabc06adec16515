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
        inputs=tuple(map(tensors.parse, inputs)),
        axes=dict(map(tensors.parse_axis, axes)),
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
    from edgepack.chain.training import processes
    from edgepack.progress import SilentProgress, make_progress

    main = processes.is_main()
    outcome = run(request, make_progress(quiet, verbose) if main else SilentProgress())
    if outcome is None:
        return
    if not quiet:
        _show(outcome.report)
    if as_json:
        _print_json(outcome.report)


def _show(document: Any) -> None:
    from rich.console import Console

    from edgepack.report import render_terminal

    render_terminal(document, Console(stderr=True))


def over_ssh(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that reach devices by ssh."""
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(1),
            default=600.0,
            show_default=True,
            metavar="SECONDS",
            help="What one command there, or one attempt to send a file, may take.",
        ),
        click.option(
            "--python", default="python3", show_default=True, metavar="PATH", help="Python there."
        ),
        click.option(
            "--ssh-config",
            "config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="What ssh reads in place of your ssh_config.",
        ),
    ):
        command = option(command)
    return command


keep = click.option("--keep", is_flag=True, help="Leave the file there for the next time.")


def _no_device(**settings: Any) -> None:
    """Refuse options of ssh where no device is reached by it."""
    context = click.get_current_context()
    for name in settings:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(o for o in context.command.params if o.name == name)
            raise click.UsageError(f"{option.opts[0]} is for a device: --on ssh://HOST")


def _warn_of_what_is_left(devices: list[Any]) -> None:
    for there in devices:
        if there.left:
            click.echo(f"warning: {there.left}", err=True)


def _through_loader(
    bundle: Path,
    arguments: list[str],
    as_json: bool,
    on: str | None = None,
    against: str | None = None,
    **settings: Any,
) -> None:
    """Run a bundle through its own loader, isolated or on a device, and show what it says."""
    from contextlib import ExitStack

    from rich.console import Console

    from edgepack import device
    from edgepack.bundle import check
    from edgepack.device import ssh

    # Python would run any file as a script.
    check(bundle)
    with ExitStack() as stack:
        host: device.Local | device.Ssh
        if on is None:
            host = stack.enter_context(device.Local())
        else:
            status = Console(stderr=True, highlight=False).status("connecting")
            host = device.Ssh(ssh.parse(on), ssh.Settings(**settings), status.update)
            stack.callback(_warn_of_what_is_left, [host])
            stack.enter_context(host)
            stack.enter_context(status)
        if against:
            arguments = [*arguments, "--against", host.put(Path(against))]
        finished = host.run(host.put(bundle), *arguments, *(["--json"] if as_json else []))
    click.echo(finished.stderr, err=True, nl=False)
    sys.stdout.write(finished.stdout.decode("utf-8", "replace"))
    sys.stdout.flush()
    # A loader that died by a signal could not run.
    sys.exit(finished.status if finished.status in (0, 1, 2) else COULD_NOT_RUN)


@cli.command()
@bundle_file
@click.option(
    "--on",
    multiple=True,
    metavar="ssh://[USER@]HOST[:PORT]",
    help="Prove it on a device instead; repeat it for more.",
)
@click.option(
    "--emulate",
    "cpus",
    multiple=True,
    metavar="CPU",
    help="Prove it on an emulated CPU instead; repeat it for more.",
)
@threads
@keep
@over_ssh
@as_json
@boundary
def verify(
    bundle: Path,
    on: tuple[str, ...],
    cpus: tuple[str, ...],
    threads: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Prove a BUNDLE on this machine or on devices, through the loader that ships in it."""
    if not on:
        _no_device(**settings)
    if on or cpus:
        _on_devices(bundle, on, cpus, threads, as_json, **settings)
    else:
        _through_loader(bundle, ["verify", f"--threads={threads}"], as_json)


def _on_devices(
    bundle: Path,
    on: tuple[str, ...],
    cpus: tuple[str, ...],
    threads: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Verify a bundle on several devices, and show a row for each."""
    from contextlib import ExitStack

    from rich.console import Console

    from edgepack import device
    from edgepack.bundle import check
    from edgepack.device import ssh
    from edgepack.report import render_matrix

    addresses, reach = [ssh.parse(url) for url in dict.fromkeys(on)], ssh.Settings(**settings)
    check(bundle)
    console = Console(stderr=True, highlight=False)
    status = console.status("connecting" if on else "emulating")
    with ExitStack() as stack:
        reached = [device.Ssh(address, reach, status.update) for address in addresses]
        stack.callback(_warn_of_what_is_left, reached)
        devices: list[device.Ssh | device.Emulated] = [*map(stack.enter_context, reached)]
        devices += [stack.enter_context(device.Emulated(cpu)) for cpu in dict.fromkeys(cpus)]
        stack.enter_context(status)
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
@click.argument("device", metavar="ssh://[USER@]HOST[:PORT]/PATH")
@click.option("--no-verify", is_flag=True, help="Ship it without a proof that it runs there.")
@threads
@over_ssh
@as_json
@boundary
def ship(
    bundle: Path, device: str, no_verify: bool, threads: int, as_json: bool, **settings: Any
) -> None:
    """Prove a BUNDLE on a device, and only then put it in its place there, by one rename.

    PATH is the file's, or a folder's; it begins in the home where it is written as /~/PATH. What
    was there before stays where the proof fails.
    """
    from rich.console import Console

    from edgepack.bundle import check
    from edgepack.device import ssh
    from edgepack.report import render_matrix
    from edgepack.report.figures import bytes_text

    address = ssh.parse(device, path=True)
    check(bundle)
    console = Console(stderr=True, highlight=False)
    status = console.status("connecting")
    there = ssh.Ssh(address, ssh.Settings(**settings), status.update)
    try:
        with there, status:
            found = ssh.ship(there, bundle, address.path, threads=threads, prove=not no_verify)
    finally:
        _warn_of_what_is_left([there])
    if found["verdict"]:
        column = {"name": there.name, "emulated": False, "verdict": found["verdict"]}
        render_matrix({"devices": [column]}, console)
    if as_json:
        _print_json(found)
    if not found["shipped"]:
        click.echo(f"not shipped: {found['path']} is as it was", err=True)
        sys.exit(FAILED)
    sent = f"{bytes_text(found['sent'])} sent" if found["sent"] else "it was there already"
    click.echo(f"shipped: {there.name}{found['path']} ({sent})", err=True)
    if no_verify:
        click.echo("warning: nothing was proved there; --no-verify was given", err=True)


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
@click.option("--on", metavar="ssh://[USER@]HOST[:PORT]", help="Measure it on a device instead.")
@click.option(
    "--emulate", "cpus", multiple=True, metavar="CPU", help="With --instructions; repeatable."
)
@click.option(
    "--instructions", is_flag=True, help="Count those of one inference on emulated CPUs: not time."
)
@threads
@keep
@over_ssh
@as_json
@boundary
def bench(
    bundle: Path,
    length: str,
    against: str | None,
    on: str | None,
    cpus: tuple[str, ...],
    instructions: bool,
    threads: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Single-stream latency of a BUNDLE on this machine or a device, by MLPerf's run lengths."""
    if on is None:
        _no_device(**settings)
    if cpus or instructions:
        _count_instructions(bundle, cpus, against, instructions, as_json)
        return
    arguments = ["bench", f"--threads={threads}", "--length", length]
    _through_loader(bundle, arguments, as_json, on, against, **settings)


def _count_instructions(
    bundle: Path, cpus: tuple[str, ...], against: str | None, asked: bool, as_json: bool
) -> None:
    """Count a bundle's instructions on emulated CPUs, and show a table for each."""
    from rich.console import Console

    from edgepack.bundle import check
    from edgepack.device import count
    from edgepack.report import render_instructions

    context = click.get_current_context()
    if not asked:
        raise SpecError(
            "emulated-speed",
            "nothing is timed on an emulated CPU",
            why="emulated time says nothing about a device's speed",
            hint=f"--emulate {cpus[0]} --instructions counts instructions; --on ssh://HOST times",
        )
    if not cpus:
        raise click.UsageError("--instructions counts on an emulated CPU: --emulate CPU")
    for name in ("length", "threads", "on"):
        # One inference on one thread is counted; more threads take turns as they like.
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} and --instructions exclude each other")
    check(bundle)
    console = Console(stderr=True, highlight=False)
    with console.status("counting") as status:
        found = []
        for cpu in dict.fromkeys(cpus):
            status.update(f"counting on {cpu}")
            found.append(count(bundle, cpu, Path(against) if against else None).to_json())
    document = {"devices": found}
    render_instructions(document, console)
    if as_json:
        _print_json(document)


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
    """The cache of stages, and the emulator."""


@cache.command("info")
@as_json
@boundary
def cache_info(as_json: bool) -> None:
    """Where the cache is, and how large."""
    from edgepack.cache import Cache, bytes_of, default_folder

    kept = Cache(default_folder())
    document = {
        "folder": str(kept.folder), "entries": len(kept.entries()), "bytes": kept.size(),
        "emulator_bytes": sum(map(bytes_of, kept.emulator())),
    }  # fmt: skip
    click.echo("{folder}: {entries} entries, {bytes:,} bytes".format(**document), err=True)
    if document["emulator_bytes"]:
        click.echo("the emulator: {emulator_bytes:,} bytes".format(**document), err=True)
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
@click.option("--emulator", is_flag=True, help="What `emulator prepare` downloaded, too.")
@as_json
@boundary
def cache_clean(older_than: float, emulator: bool, as_json: bool) -> None:
    """Delete what earlier builds left."""
    from edgepack.cache import Cache, default_folder

    count, freed = Cache(default_folder()).clean(older_than, emulator=emulator)
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
