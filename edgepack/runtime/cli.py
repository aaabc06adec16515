"""What `python3 BUNDLE` understands. Human text goes to stderr, `--json` to stdout.

Exit status: 0 done, 1 a gate was missed, 2 it could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import Any, Dict, List, NoReturn, Optional

from .bundle.archive import Archive, own_bundle
from .bundle.engines import CUDA, TENSORRT
from .bundle.index import check_file, read_index
from .commands.bench import LENGTHS, bench, child
from .commands.info import UNPROVEN, info
from .device.variants import aloud
from .errors import DeviceError, EdgepackError, InputError
from .failure import BundleState, explain_exception
from .origin import origin
from .parity.gates import describe_gate
from .streams import flush_streams, printable, reserve_stdout, restore_streams, say, show, tell

# `info` tells what to install, so it must run before anything is: all that needs numpy is
# imported by the commands that compute.


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option as an error, and its help as a result."""

    def error(self, message: str) -> NoReturn:
        raise InputError("usage", printable(message), hint="{} --help".format(self.prog))

    def print_help(self, file: Any = None) -> None:
        show(self.format_help())


def _whole(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return number


def _samples(text: str) -> int:
    return _whole(text, 1, 1 << 31)


def _threads(text: str) -> int:
    return _whole(text, 0, 4096)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python3 BUNDLE", description="An edgepack bundle: a model that proves itself."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    add = commands.add_parser("verify", help="prove that this device computes what was built")
    # The build streams its evaluation set through standard input.
    add.add_argument("--evaluation", action="store_true", help=argparse.SUPPRESS)
    add.add_argument(
        "--samples", type=_samples, default=0, metavar="N", help="default: all reference samples"
    )
    add.set_defaults(act=_verify)
    add = commands.add_parser("run", help="outputs on an .npz of samples")
    add.add_argument("--input", default="", metavar="NPZ", help="default: the reference samples")
    add.add_argument("--output", required=True, metavar="NPZ")
    add.set_defaults(act=_run)
    add = commands.add_parser("bench", help="single-stream latency on this device")
    add.add_argument("--length", choices=sorted(LENGTHS), default="quick")
    add.add_argument("--against", default="", metavar="ONNX", help="measure it side by side")
    add.set_defaults(act=_bench)
    add = commands.add_parser("info", help="what the bundle is and needs")
    add.add_argument("--requirements", action="store_true", help="print requirements.txt")
    add.set_defaults(act=_info)
    add = commands.add_parser("setup", help="numpy and the engine from the bundle, no network")
    add.add_argument("folder", metavar="DIR", help="the environment's folder")
    add.set_defaults(act=_setup)
    add = commands.add_parser("finish", help="build the TensorRT engine on this device")
    add.add_argument("--force", action="store_true", help="also where there is one already")
    add.set_defaults(act=_finish)
    for name in ("verify", "run"):
        # The build host runs what is meant for another processor, or for a GPU.
        commands.choices[name].add_argument(
            "--stand-in", action="store_true", help=argparse.SUPPRESS
        )
    for name in ("verify", "run", "bench"):
        commands.choices[name].add_argument(
            "--variant", default="", metavar="NAME", help="default: the best that fits (info)"
        )
    # What the build asks; not for people, so it has no help.
    add = commands.add_parser("device")
    add.set_defaults(act=_device)
    # What the counter of instructions asks.
    add = commands.add_parser("marked")
    add.add_argument("--repeats", type=int, required=True)
    add.add_argument("--against", default="")
    add.set_defaults(act=_marked)
    for sub in commands.choices.values():
        sub.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        sub.add_argument("--threads", type=_threads, default=0, help="default: every physical core")
    # One turn of `bench`, in a process of its own.
    turn = commands.add_parser("bench-turn")
    turn.add_argument("--queries", type=int, required=True)
    turn.add_argument("--seconds", type=float, required=True)
    turn.add_argument("--threads", type=_threads, default=0)
    turn.add_argument("--against", default="")
    turn.add_argument("--variant", default="")
    turn.add_argument("--cuda", action="store_true")
    turn.set_defaults(act=_turn, json=True)
    return parser


def _engine(variant: Dict[str, Any], here: Dict[str, Any]) -> str:
    """The engine that ran, its version, and the GPU that it ran on."""
    if variant["engine"] == TENSORRT:
        return f"TensorRT {here['tensorrt']} on {here['gpu']}"
    on = f" on {here['gpu']}" if variant["engine"] == CUDA else ""
    return f"onnxruntime {here['onnxruntime']}{on}"


def _verify(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    from .commands.verify import verify

    stream = sys.stdin.buffer if options.evaluation else None
    verdict = verify(
        bundle,
        evaluation=stream,
        threads=options.threads,
        stand_in=options.stand_in,
        variant=options.variant,
        samples=options.samples,
    )
    here = verdict["device"]
    say(
        *aloud(verdict["variant"]),
        f"{verdict['bundle']['name']} for {verdict['bundle']['target']}, "
        f"content {verdict['bundle']['content_digest'][:16]}",
        f"SHA-256 {verdict['bundle']['sha256']}",
        f"on {here['cpu']} ({here['arch']}), Python {here['python']}, "
        + _engine(verdict["variant"], here),
        f"integrity: {verdict['integrity']['files']} files, "
        f"{verdict['integrity']['bytes']:,} bytes, every hash holds",
    )
    for question, subject in (("fidelity", "build host"), ("quality", "original model")):
        found = verdict[question]
        if found is None:
            continue
        say(f"{question}, against the {subject}, {found['samples']} {found['on']} samples:")
        say(*("  " + describe_gate(gate) for gate in found["gates"]))
    say("verdict: " + ("PASS" if verdict["passed"] else "FAIL"))
    if not verdict["proven"]:
        say(UNPROVEN)
    return verdict, 0 if verdict["passed"] else 1


def _run(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    from .commands.run import run, write_npz

    outputs, choice = run(
        bundle, options.input, options.threads, stand_in=options.stand_in, variant=options.variant
    )
    write_npz(options.output, outputs)
    shapes = {name: [str(array.dtype), *array.shape] for name, array in outputs.items()}
    ran = choice.to_json()
    say(*aloud(ran), *(f"{name}: {found[0]} {tuple(found[1:])}" for name, found in shapes.items()))
    say(f"written: {options.output}")
    return {"output": options.output, "outputs": shapes, "variant": ran}, 0


def _ms(value: Optional[float]) -> str:
    return "too few queries" if value is None else f"{value:.3f} ms"


def _bench(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    found = bench(
        bundle,
        length=options.length,
        against=options.against,
        threads=options.threads,
        variant=options.variant,
    )
    say(*aloud(found["variant"]))
    for name, title in (("model", "this bundle"), ("original", "the other model")):
        if found[name]:
            say(
                f"{title}: p50 {_ms(found[name]['p50'])}, p90 {_ms(found[name]['p90'])}, "
                f"{found[name]['queries']} queries"
            )
    if found["ratio"]:
        faster = "faster" if found["ratio"] >= 1 else "SLOWER"
        about = "about " if found["disturbed"] else ""
        digits = 1 if found["disturbed"] else 2
        factor = max(found["ratio"], 1 / found["ratio"])
        say(f"this bundle is {about}{factor:.{digits}f}x {faster}")
    if found["disturbed"]:
        say(f"disturbed: {'; '.join(found['disturbed'])}; measure again on a quiet machine")
    return found, 0


def _turn(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    found = child(
        bundle,
        options.against,
        options.queries,
        options.seconds,
        options.threads,
        options.variant,
        options.cuda,
    )
    return found, 0


def _marked(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    from .commands import marked

    return marked.child(bundle, options.against, options.repeats, options.threads), 0


def _device(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    from .commands.verify import this_device

    return this_device(), 0


def _info(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    if options.requirements:
        with Archive(bundle) as archive:
            text = check_file(archive, read_index(archive), "requirements.txt")
        show(
            "".join(printable(line) + "\n" for line in text.decode("utf-8", "replace").splitlines())
        )
        return {}, 0
    lines, document = info(bundle)
    say(*lines)
    return document, 0


def _finish(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    from .commands.finish import finish

    return finish(bundle, say, force=options.force), 0


def _setup(bundle: str, options: argparse.Namespace) -> "tuple[Dict[str, Any], int]":
    from .commands.setup import setup

    found = setup(bundle, options.folder)
    say(
        ("ready: " if found["made"] else "ready, as it was: ") + found["environment"],
        "has    " + ", ".join(f"{k} {v}" for k, v in sorted(found["packages"].items())),
        f"next:  {found['python']} {bundle} verify",
    )
    return found, 0


def _require_numpy() -> None:
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "numpy-missing",
            "numpy cannot be imported on this device",
            why=str(error),
            hint="pip install the versions in the bundle's requirements.txt:\n"
            "python3 BUNDLE info --requirements > requirements.txt",
        ) from error


def main(arguments: Optional[List[str]] = None, bundle: str = "") -> int:
    """Run one command; returns the exit status.

    Args:
        arguments: of the command line; None takes the process's own.
        bundle: the file to serve; "" takes the one that this loader came in.
    """
    restore_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    return flush_streams(_run_command(arguments, bundle))


def _run_command(arguments: List[str], bundle: str) -> int:
    """Run one command and report its error; every exception becomes an exit status.

    Python would end with 1 where an exception goes unhandled, which means a missed gate.
    """
    bundle_state = BundleState.read(bundle or origin())
    as_json = "--json" in arguments or arguments[:1] == ["bench-turn"]
    try:
        options = _parser().parse_args(arguments)
        if options.command is None:
            tell(_parser().format_help())
            return 2
        with reserve_stdout():
            return _act(options, bundle)
    except SystemExit as ended:  # after `--help`
        return int(ended.code or 0)
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except EdgepackError as error:
        return _report_error(error, as_json)
    except Exception as error:  # noqa: BLE001
        return _report_error(explain_exception(error, bundle_state), as_json)


def _act(options: argparse.Namespace, bundle: str) -> int:
    if options.act not in (_info, _setup):
        _require_numpy()
    result, status = options.act(bundle or own_bundle(), options)
    if options.json and result:
        show(json.dumps(result, sort_keys=True, allow_nan=False) + "\n")
    return int(status)


def _report_error(error: EdgepackError, as_json: bool) -> int:
    if as_json:
        # If standard output is what failed, standard error alone carries the error.
        with suppress(EdgepackError):
            show(json.dumps({"error": error.to_json()}, sort_keys=True) + "\n")
    tell(str(error))
    return error.exit_code
