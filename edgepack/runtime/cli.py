"""Command line of `python3 BUNDLE`.

The result goes to stdout, as text or with `--json` as a document; progress, warnings and errors go
to stderr.

Exit status: 0 done, 1 the verdict is not PASS, 2 the command could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, List, Mapping, NamedTuple, NoReturn, Optional, Sequence

from .bundle.archive import Archive, own_bundle
from .bundle.checksum import require_checksum
from .bundle.engines import CUDA, F32, OPENVINO, TENSORRT
from .bundle.index import check_file, read_index
from .commands.bench import LENGTHS, bench, measure_turn
from .commands.info import info
from .device.variants import format_fallback
from .errors import DeviceError, EdgepackError, InputError
from .failure import BundleState, explain_exception
from .origin import origin
from .parity.gates import describe_gate
from .parity.verdict import PASS, UNVERIFIED
from .streams import (
    PipeClosed,
    flush_streams,
    print_error,
    print_result,
    print_status,
    printable,
    reserve_stdout,
    restore_streams,
    write_result,
)

if TYPE_CHECKING:
    from .documents import Question, RunDocument, Timing, VariantDocument, Verdict

# `info` lists the packages to install, so it must work before any is installed: the modules that
# need numpy are imported inside the commands that compute.


class _Parser(argparse.ArgumentParser):
    """Parser that raises InputError for a wrong option and prints its help as a result."""

    def error(self, message: str) -> NoReturn:
        raise InputError("usage", printable(message), hint=f"{self.prog} --help")

    def print_help(self, file: object = None) -> None:
        write_result(self.format_help())


def _parse_integer(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return number


def _parse_samples(text: str) -> int:
    return _parse_integer(text, 1, 1 << 31)


def _parse_port(text: str) -> int:
    return _parse_integer(text, 0, 65535)


def _parse_megabytes(text: str) -> int:
    return _parse_integer(text, 1, 1024)


def _parse_threads(text: str) -> int:
    return _parse_integer(text, 0, 4096)


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python3 BUNDLE", description="Run, verify and measure the model in this bundle."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    add = commands.add_parser("verify", help="check this device's answers against the build's")
    # The build streams its evaluation set through standard input.
    add.add_argument("--evaluation", action="store_true", help=argparse.SUPPRESS)
    add.add_argument("--answers", default="", help=argparse.SUPPRESS)
    add.add_argument(
        "--samples",
        type=_parse_samples,
        default=0,
        metavar="N",
        help="default: all reference samples",
    )
    add.set_defaults(act=_verify)
    add = commands.add_parser(
        "run", help="answer pictures, recordings or texts, or compute the outputs of an .npz"
    )
    add.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="pictures, recordings, files with a text on each line, folders of them, or - for "
        "standard input",
    )
    add.add_argument("--text", action="append", default=[], help="may be repeated")
    add.add_argument(
        "--text-pair", action="append", default=[], metavar="TEXT", help="second text of a pair"
    )
    add.add_argument(
        "--top", type=_parse_samples, default=5, metavar="N", help="classes shown; default: 5"
    )
    add.add_argument("--input", default="", metavar="NPZ", help="default: the reference samples")
    add.add_argument("--output", default="", metavar="NPZ", help="for the outputs of --input")
    add.set_defaults(act=_run)
    add = commands.add_parser("bench", help="measure single-stream latency on this device")
    add.add_argument(
        "--latency", "--length", dest="length", choices=sorted(LENGTHS), default="quick"
    )
    add.add_argument("--against", default="", metavar="ONNX", help="model to compare with")
    add.set_defaults(act=_bench)
    add = commands.add_parser("serve", help="answer requests over HTTP, and show a page")
    add.add_argument("--host", default="127.0.0.1", help="address; default: this machine alone")
    add.add_argument("--port", type=_parse_port, default=8080, help="0 takes a free one")
    add.add_argument(
        "--allow-host",
        dest="names",
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this host name, too; repeatable",
    )
    add.add_argument(
        "--max-request", type=_parse_megabytes, default=16, metavar="MB", help="default: 16"
    )
    add.set_defaults(act=_serve)
    add = commands.add_parser("info", help="show the bundle's contents and requirements")
    add.add_argument("--requirements", action="store_true", help="print requirements.txt")
    add.set_defaults(act=_info)
    add = commands.add_parser("setup", help="install the bundle's wheels, without network")
    add.add_argument("folder", metavar="DIR", help="the environment's folder")
    add.set_defaults(act=_setup)
    add = commands.add_parser("finish", help="build the TensorRT engine on this device")
    add.add_argument("--force", action="store_true", help="rebuild an engine that exists")
    add.set_defaults(act=_finish)
    add = commands.add_parser("tune", help="choose the fastest engine and settings")
    add.add_argument("--force", action="store_true", help="choose again")
    add.add_argument("--seconds", type=_parse_samples, default=20, help="time limit; default: 20")
    add.set_defaults(act=_tune)
    for name in ("verify", "run"):
        # The build host runs bundles for other processors and for GPUs on its own CPU.
        commands.choices[name].add_argument(
            "--stand-in", action="store_true", help=argparse.SUPPRESS
        )
    for name in ("verify", "finish", "tune"):
        commands.choices[name].add_argument(
            "--allow-unverified", action="store_true", help="exit with 0 on UNVERIFIED as well"
        )
    for name in ("verify", "run", "bench", "serve"):
        commands.choices[name].add_argument(
            "--variant", default="", metavar="NAME", help="default: the best that fits, see info"
        )
    # Called by the build, not by people, so it has no help.
    add = commands.add_parser("device")
    add.set_defaults(act=_describe_device)
    # Called by the instruction counter of `edgepack bench --instructions`.
    add = commands.add_parser("marked")
    add.add_argument("--repeats", type=int, required=True)
    add.add_argument("--warm-up", type=int, default=8)
    add.add_argument("--against", action="append")
    add.set_defaults(act=_run_marked)
    for sub in commands.choices.values():
        sub.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        sub.add_argument(
            "--threads", type=_parse_threads, default=0, help="default: every physical core"
        )
    # Each round of `bench` runs in a separate process.
    turn = commands.add_parser("bench-turn")
    turn.add_argument("--queries", type=int, required=True)
    turn.add_argument("--seconds", type=float, required=True)
    turn.add_argument("--threads", type=_parse_threads, default=0)
    turn.add_argument("--against", default="")
    turn.add_argument("--variant", default="")
    turn.add_argument("--cuda", action="store_true")
    turn.set_defaults(act=_measure_turn, json=True)
    return parser


class _Answer(NamedTuple):
    """Result of a command.

    Attributes:
        document: JSON values, printed with `--json`; empty for none.
        lines: text for people, printed without `--json`.
        status: exit status.
    """

    document: Mapping[str, object]
    lines: Sequence[str] = ()
    status: int = 0


def _describe_engine(variant: VariantDocument, device: Mapping[str, object]) -> str:
    """Return the engine that ran, its version, and its GPU, in words."""
    if variant["engine"] == TENSORRT:
        return f"TensorRT {device['tensorrt']} on {device['gpu']}"
    if variant["engine"] == CUDA:
        return f"onnxruntime {device['onnxruntime']} on {device['gpu']}"
    if variant["engine"] == OPENVINO:
        precision = variant.get("settings", {}).get("precision", F32)
        return f"OpenVINO {device['openvino']} in {precision}"
    return f"onnxruntime {device['onnxruntime']}"


def _verify(bundle: str, options: argparse.Namespace) -> _Answer:
    from .commands.verify import verify

    evaluation = None
    if options.evaluation:
        evaluation = sys.stdin.buffer
    verdict = verify(
        bundle,
        evaluation=evaluation,
        answers=options.answers,
        threads=options.threads,
        stand_in=options.stand_in,
        variant=options.variant,
        samples=options.samples,
    )
    print_status(*format_fallback(verdict["variant"]))
    return _Answer(verdict, describe_verdict(verdict), _find_status(verdict["verdict"], options))


def _find_status(verdict: str, options: argparse.Namespace) -> int:
    if verdict == UNVERIFIED:
        return int(not options.allow_unverified)
    return int(verdict != PASS)


def describe_verdict(verdict: Verdict) -> List[str]:
    """Return the text of `verify`: the bundle, the device, each gate, and the verdict."""
    bundle, device, integrity = verdict["bundle"], verdict["device"], verdict["integrity"]
    lines = [
        f"{bundle['name']} for {bundle['target']}, content {bundle['content_digest'][:16]}",
        f"SHA-256 {bundle['sha256']}",
        # With the engine, for example "on Cortex-A76 (aarch64), Python 3.11.2, onnxruntime 1.18".
        f"on {device['cpu']} ({device['arch']}), Python {device['python']}, "
        + _describe_engine(verdict["variant"], device),
        f"integrity: {integrity['files']} files, {integrity['bytes']:,} bytes, all hashes match",
    ]
    if verdict["preprocessing"] is not None:
        title = "preprocessing, against the build host"
        lines += _describe_question(title, verdict["preprocessing"])
    if verdict["fidelity"] is not None:
        lines += _describe_question("fidelity, against the build host", verdict["fidelity"])
    lines += _describe_question("quality, against the original model", verdict["quality"])
    if "placement" in verdict:
        from .session.placement import describe_placement

        lines += describe_placement(verdict["placement"])
    lines.append(f"verdict: {verdict['verdict']}")
    # The missed gates are marked above.
    if verdict["verdict"] == UNVERIFIED:
        lines += [f"  {reason['text']}" for reason in verdict["reasons"]]
    return lines


def _describe_question(title: str, answers: Question) -> List[str]:
    lines = [f"{title}, {answers['samples']} {answers['on']} samples:"]
    for gate in answers["gates"]:
        lines.append("  " + describe_gate(gate))
    return lines


def _run(bundle: str, options: argparse.Namespace) -> _Answer:
    if options.files or options.text:
        return _predict(bundle, options)
    if not options.output:
        raise InputError(
            "usage",
            "run needs files or texts, or a file for the outputs",
            why="there is neither FILE nor --text nor --output",
            hint="python3 BUNDLE run photo.jpg\n"
            "python3 BUNDLE run --text TEXT\n"
            "python3 BUNDLE run --input samples.npz --output answers.npz",
        )
    from .commands.run import run, write_npz

    outputs, choice = run(
        bundle, options.input, options.threads, stand_in=options.stand_in, variant=options.variant
    )
    write_npz(options.output, outputs)
    variant = choice.to_json()
    print_status(*format_fallback(variant))
    document: RunDocument = {"output": options.output, "outputs": {}, "variant": variant}
    lines = []
    for name, array in outputs.items():
        document["outputs"][name] = [str(array.dtype), *array.shape]
        lines.append(f"{name}: {array.dtype} {array.shape}")
    lines.append(f"written: {options.output}")
    return _Answer(document, lines)


def _predict(bundle: str, options: argparse.Namespace) -> _Answer:
    if options.input or options.output:
        raise InputError(
            "usage",
            "files and arrays were both requested",
            why="FILE and --input or --output exclude each other",
            hint="python3 BUNDLE run photo.jpg --json",
        )
    with Archive(bundle) as archive:
        preprocessing = read_index(archive).preprocessing
    if preprocessing is None:
        raise InputError(
            "preprocessing-missing",
            "the bundle takes arrays alone",
            why="it was built on arrays, and so has no preprocessing for files",
            hint="python3 BUNDLE run --input samples.npz --output answers.npz",
        )
    from .commands.predict import predict_files

    results, model = predict_files(
        bundle,
        options.files,
        texts=options.text,
        pairs=options.text_pair,
        top=options.top,
        threads=options.threads,
        variant=options.variant,
        stand_in=options.stand_in,
    )
    variant = model.choice.to_json()
    print_status(*format_fallback(variant))
    lines, status = [], 0
    for result in results:
        if result.error is not None:
            print_error(str(result.error))
            status = result.error.exit_code
        else:
            lines += result.lines()
    predictions = [result.to_json() for result in results]
    return _Answer({"predictions": predictions, "variant": variant}, lines, status)


def _bench(bundle: str, options: argparse.Namespace) -> _Answer:
    report = bench(
        bundle,
        length=options.length,
        against=options.against,
        threads=options.threads,
        variant=options.variant,
    )
    print_status(*format_fallback(report["variant"]))
    disturbed = bool(report["disturbed"])
    lines = [_describe_timing("this bundle", report["model"], disturbed)]
    if report["original"] is not None:
        lines.append(_describe_timing("the other model", report["original"], disturbed))
    if report["ratio"]:
        lines.append(_format_ratio(report["ratio"], disturbed))
    _print_disturbed(report["disturbed"])
    return _Answer(report, lines)


def _print_disturbed(reasons: Sequence[str]) -> None:
    if reasons:
        print_status(f"disturbed: {'; '.join(reasons)}; measure again on an idle machine")


def _describe_timing(title: str, timing: Timing, disturbed: bool) -> str:
    if disturbed:
        title += ", disturbed"
    p50, p90 = _format_latency(timing["p50"]), _format_latency(timing["p90"])
    return f"{title}: p50 {p50}, p90 {p90}, {timing['queries']} queries"


def _format_latency(milliseconds: Optional[float]) -> str:
    if milliseconds is None:
        return "too few queries"
    return f"{milliseconds:.3f} ms"


def _format_ratio(ratio: float, disturbed: bool) -> str:
    """Return the speed-up in words; a disturbed one with fewer digits."""
    # A ratio of 0.5 reads better as "2.00x SLOWER".
    factor = max(ratio, 1 / ratio)
    about = f"{factor:.2f}x"
    if disturbed:
        about = f"about {factor:.1f}x"
    if ratio < 1:
        return f"this bundle is {about} SLOWER"
    return f"this bundle is {about} faster"


def _serve(bundle: str, options: argparse.Namespace) -> _Answer:
    from .commands.serve import serve

    def started(url: str, port: int) -> None:
        if options.json:
            write_result(json.dumps({"url": url, "port": port}) + "\n")
        else:
            print_result(f"serving at {url}")
            print_status("stop with Ctrl+C")

    serve(
        bundle,
        started,
        host=options.host,
        port=options.port,
        names=options.names,
        max_bytes=options.max_request << 20,
        threads=options.threads,
        variant=options.variant,
    )
    return _Answer({})


def _measure_turn(bundle: str, options: argparse.Namespace) -> _Answer:
    turn = measure_turn(
        bundle,
        options.against,
        options.queries,
        options.seconds,
        options.threads,
        options.variant,
        options.cuda,
    )
    return _Answer(turn)


def _run_marked(bundle: str, options: argparse.Namespace) -> _Answer:
    from .commands.marked import run_marked

    models = options.against or [""]
    return _Answer(run_marked(bundle, models, options.repeats, options.threads, options.warm_up))


def _describe_device(bundle: str, options: argparse.Namespace) -> _Answer:
    from .commands.verify import this_device

    device = this_device()
    facts = {**device, "isa": " ".join(device["isa"] or ["unknown"])}
    return _Answer(device, [f"{key:<11} {value}" for key, value in facts.items()])


def _info(bundle: str, options: argparse.Namespace) -> _Answer:
    if options.requirements:
        with Archive(bundle) as archive:
            text = check_file(archive, read_index(archive), "requirements.txt")
        return _Answer({}, text.decode("utf-8", "replace").splitlines())
    lines, document = info(bundle)
    return _Answer(document, lines)


def _finish(bundle: str, options: argparse.Namespace) -> _Answer:
    with Archive(bundle) as archive:
        variants = read_index(archive).variants
        require_checksum(archive)
    if not any(variant.unfinished for variant in variants):
        engines = ", ".join(sorted({variant.engine for variant in variants}))
        raise InputError(
            "nothing-to-finish",
            "the bundle has no engine to build on the device",
            why=f"it runs in {engines} as it is",
            hint="python3 BUNDLE verify",
        )
    from .commands.finish import describe_report, finish

    report = finish(bundle, force=options.force)
    status = _find_status(report["verdict"], options)
    return _Answer(report, describe_report(report), status)


def _tune(bundle: str, options: argparse.Namespace) -> _Answer:
    with Archive(bundle) as archive:
        index = read_index(archive)
    if index.on_gpu:
        raise InputError(
            "nothing-to-tune",
            "only bundles for CPUs can be tuned",
            hint="python3 BUNDLE verify",
        )
    from .commands.tune import describe_report, tune

    report = tune(bundle, seconds=options.seconds, force=options.force)
    _print_disturbed(report.get("disturbed", ()))
    status = _find_status(report["verdict"], options)
    return _Answer(report, describe_report(report), status)


def _setup(bundle: str, options: argparse.Namespace) -> _Answer:
    from .commands.setup import setup

    report = setup(bundle, options.folder)
    packages = sorted(report["packages"].items())
    state = "ready, unchanged"
    if report["made"]:
        state = "ready"
    versions = [f"{name} {version}" for name, version in packages]
    lines = [
        f"{state}: {report['environment']}",
        f"has    {', '.join(versions)}",
        f"next:  {report['python']} {bundle} verify",
    ]
    return _Answer(report, lines)


def _require_numpy() -> None:
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "numpy-missing",
            "numpy cannot be imported on this device",
            why=str(error),
            hint="install the versions in the bundle's requirements.txt:\n"
            "python3 BUNDLE info --requirements > requirements.txt",
        ) from error


def main(arguments: Optional[List[str]] = None, bundle: str = "") -> int:
    """Run one command and return the exit status.

    Args:
        arguments: of the command line; None for those of the process.
        bundle: the file to serve; "" for the bundle that contains this loader.
    """
    restore_streams()
    if arguments is None:
        arguments = sys.argv[1:]
    return flush_streams(_run_command(arguments, bundle))


def _run_command(arguments: List[str], bundle: str) -> int:
    """Run one command and report its error; every exception becomes an exit status.

    Python exits with 1 after an unhandled exception, and here 1 means a missed gate.
    """
    # Read the state first, to detect a bundle that changes while the command runs.
    bundle_state = BundleState.read(bundle or origin())
    # Not from `options`: an error in the arguments must be reported as JSON too.
    as_json = "--json" in arguments or arguments[:1] == ["bench-turn"]
    try:
        options = _make_parser().parse_args(arguments)
        if options.command is None:
            print_error(_make_parser().format_help())
            return 2
        with reserve_stdout():
            return _act(options, bundle)
    except SystemExit as error:  # after `--help`
        return int(error.code or 0)
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except EdgepackError as error:
        return _report_error(error, as_json)
    except Exception as error:  # noqa: BLE001
        return _report_error(explain_exception(error, bundle_state), as_json)


def _act(options: argparse.Namespace, bundle: str) -> int:
    # `info` lists the missing packages and `setup` installs them, so neither may need numpy.
    if options.act not in (_info, _setup):
        _require_numpy()
    answer: _Answer = options.act(bundle or own_bundle(), options)
    if options.json and answer.document:
        write_result(json.dumps(answer.document, sort_keys=True, allow_nan=False) + "\n")
    else:
        print_result(*answer.lines)
    return answer.status


def _report_error(error: EdgepackError, as_json: bool) -> int:
    if as_json:
        # If standard output itself failed, only standard error can carry the error.
        with suppress(EdgepackError, PipeClosed):
            write_result(json.dumps({"error": error.to_json()}, sort_keys=True) + "\n")
    print_error(str(error))
    return error.exit_code
