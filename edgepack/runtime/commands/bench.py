"""`bench`: single-stream latency of a loaded model, by MLPerf's rules.

Each model is measured in a separate process, since the threads of several sessions in one process
disturb each other. Two models take turns, so that a drift of the machine's speed affects both.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple, cast

from ..bundle.archive import Archive
from ..bundle.engines import CUDA
from ..bundle.index import read_index
from ..device import machine
from ..errors import DeviceError, EdgepackError, InputError
from ..origin import program
from ..plain import read_plain
from .load import LoadMonitor, disturbances, spread_of

if TYPE_CHECKING:
    from ..device.variants import Choice
    from ..documents import DeviceDocument, Latency, Timing, Turn, VariantDocument
    from ..session.onnx_session import OnnxSession

# Minimum queries and seconds, as in MLPerf Inference.
LENGTHS = {"smoke": (64, 2.4), "quick": (128, 10.0), "normal": (1024, 60.0)}
# Fewest queries that support each percentile (MLPerf Inference, early stopping).
FEWEST = {"p50": 1, "p90": 64, "p95": 130, "p99": 662}
# The two models alternate so often; a round takes a third of the queries and of the time.
ROUNDS = 3
WARM_UP_SECONDS = 0.3


def percentiles(nanoseconds: List[int]) -> Dict[str, Optional[float]]:
    """Return p50, p90, p95 and p99 in ms by the nearest rank; None below the fewest queries.

    Of [1, 2, 3, 4] ms the nearest rank of p50 is ceil(0.5 * 4) = 2, so p50 is 2 ms.
    """
    values: Dict[str, Optional[float]] = {}
    for name, fewest in FEWEST.items():
        values[name] = None
        if len(nanoseconds) >= fewest:
            values[name] = _percentile(nanoseconds, int(name[1:]) / 100)
    return values


def _percentile(nanoseconds: Sequence[int], share: float) -> float:
    rank = max(1, math.ceil(share * len(nanoseconds)))
    return sorted(nanoseconds)[rank - 1] / 1e6


def time_calls(
    call: Callable[[], object], queries: int, seconds: float, warm_up: float = WARM_UP_SECONDS
) -> List[int]:
    """Return the duration of each call, in ns.

    Args:
        call: one inference.
        queries: the minimum number of calls.
        seconds: the minimum time.
        warm_up: seconds of calls that come before and do not count.
    """
    # The first calls are slower: caches are cold and the CPU's clock ramps up.
    clock = time.perf_counter_ns
    until = clock() + int(warm_up * 1e9)
    while clock() < until:
        call()
    times: List[int] = []
    until = clock() + int(seconds * 1e9)
    while len(times) < queries or clock() < until:
        started = clock()
        call()
        times.append(clock() - started)
    return times


def open_call(
    path: str, against: str, threads: int, variant: str = "", cuda: bool = False
) -> Tuple[Callable[[], object], float, Optional[Choice]]:
    """Return one inference as a call, the seconds that loading took, and the chosen variant.

    Args:
        path: the bundle; the call runs on its first reference sample.
        against: an ONNX file to run in its place, by bare onnxruntime; empty for none.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the bundle's variant; "" for the best that fits.
        cuda: run `against` on the GPU.

    Raises InputError if that file is not a model that runs on the same sample.
    """
    from ..model import open_model
    from .verify import reference_feeds

    with Archive(path) as archive:
        index = read_index(archive)
        feed = next(reference_feeds(archive, index))
        started = time.perf_counter()
        choice = None
        if against:
            call = _open_other(against, threads, cuda).run
        else:
            model = open_model(archive, index, threads, variant=variant)
            call, choice = model.run, model.choice
        load_seconds = time.perf_counter() - started
    # Its inputs are unknown until it runs; outside the measured time, or it would count as loading.
    if against:
        _try_other(against, lambda: call(feed))
    return (lambda: call(feed)), load_seconds, choice


def _open_other(path: str, threads: int, cuda: bool) -> OnnxSession:
    """Start the model of `--against`. Raises InputError if the file is not an ONNX model."""
    from ..session.onnx_session import OnnxSession

    try:
        return OnnxSession(_read(path), threads=threads, cuda=cuda)
    except DeviceError as error:
        # A missing engine or GPU is not the file's fault.
        if error.code != "engine-refused":
            raise
        raise InputError(
            error.code,
            f"{path} is not an ONNX model that onnxruntime can load",
            why=error.why,
            hint="--against takes an ONNX file, such as the model before the build",
        ) from error


def _try_other(path: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise InputError(
            "against-failed",
            f"{path} does not run on the bundle's reference samples",
            why=str(error).strip(),
            hint="--against takes a model with the same inputs, by name, type and shape",
        ) from error


def _read(path: str) -> bytes:
    try:
        return read_plain(path)
    except OSError as error:
        raise InputError(
            "against-unreadable",
            f"{path} cannot be read",
            why=error.strerror or str(error),
            hint="--against takes an ONNX file",
        ) from error


def measure_turn(
    path: str,
    against: str,
    queries: int,
    seconds: float,
    threads: int,
    variant: str = "",
    cuda: bool = False,
) -> Turn:
    """Measure one turn in this process: the bundle, or the bare engine on another ONNX."""
    import numpy as np

    call, load_seconds, choice = open_call(path, against, threads, variant, cuda)
    turn: Turn = {
        "ns": time_calls(call, queries, seconds),
        "load_seconds": load_seconds,
        "peak_rss_bytes": machine.peak_rss(),
        "variant": None,
        "device": None,
    }
    if choice is not None:
        turn["variant"] = choice.to_json()
        turn["device"] = {**choice.device, "numpy": np.__version__}
    return turn


def _turn(path: str, arguments: Sequence[str]) -> Turn:
    """Measure one turn in a separate process, which raises its EdgepackError here."""
    # The child must import from the same places as this process.
    flags = []
    if sys.flags.isolated:
        flags.append("-I")
    if sys.flags.no_site:
        flags.append("-S")
    if sys.flags.no_user_site:
        flags.append("-s")
    process = subprocess.run(
        [sys.executable, *flags, *program(path), "bench-turn", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        document = json.loads(process.stdout.decode("utf-8"))
    except ValueError as error:
        raise DeviceError(
            "bench-failed",
            "the process that measures the latency failed",
            why=process.stderr.decode("utf-8", "replace").strip()[-2000:]
            or f"exit status {process.returncode}",
            hint="python3 BUNDLE verify shows if the bundle runs here at all",
        ) from error
    if "error" in document:
        fields = document["error"]
        raise EdgepackError(fields["code"], fields["what"], why=fields["why"], hint=fields["hint"])
    turn: Turn = document
    return turn


def _summarize(turns: Sequence[Turn]) -> Timing:
    """Return the percentiles of all turns together, and the median of each."""
    times: List[int] = []
    rounds: List[float] = []
    for turn in turns:
        times += turn["ns"]
        rounds.append(_percentile(turn["ns"], 0.5))
    shares = percentiles(times)
    return {
        "p50": _percentile(times, 0.5),
        "p90": shares["p90"],
        "p95": shares["p95"],
        "p99": shares["p99"],
        "queries": len(times),
        "seconds": sum(times) / 1e9,
        "rounds_p50": rounds,
        # The fastest start and the largest process, since other programs only add to the first.
        "load_seconds": min(turn["load_seconds"] for turn in turns),
        "peak_rss_bytes": max(turn["peak_rss_bytes"] for turn in turns),
    }


def _rounds(model: Timing, other: Optional[Timing]) -> List[float]:
    """Return the speed-up of each round, or its median latency if there is no second model.

    A machine that slows down slows both sides of a round, so their ratio stays.
    """
    if other is None:
        return list(model["rounds_p50"])
    # Rounds of 10 and 20 ms against 5 and 10 ms are both a speed-up of 2, without any spread.
    speed_ups = []
    for theirs, ours in zip(other["rounds_p50"], model["rounds_p50"]):
        speed_ups.append(theirs / ours)
    return speed_ups


def bench(
    path: str, *, length: str, against: str = "", threads: int = 0, variant: str = ""
) -> Latency:
    """Measure the latency of the bundle and, in the same run, of another ONNX model.

    Args:
        path: the bundle.
        length: a key of LENGTHS.
        against: an ONNX file with the same inputs; empty for none. It runs in onnxruntime, on the
            GPU if the bundle does so with onnxruntime, else on the CPU.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the bundle's variant; "" for the best that fits.

    Returns latencies in ms; `ratio` is the other model's p50 over the bundle's, `load` the load by
    other processes, `spread` the variation of the ratio between rounds, and `disturbed` the reasons
    not to rely on the figures (empty on a quiet machine).
    """
    queries, seconds = LENGTHS[length]
    share = (
        f"--queries={math.ceil(queries / ROUNDS)}",
        f"--seconds={seconds / ROUNDS}",
        f"--threads={threads}",
    )
    turns: List[Turn] = []
    other_turns: List[Turn] = []
    monitor = LoadMonitor()
    for _ in range(ROUNDS):
        turns.append(_turn(path, [*share, f"--variant={variant}"]))
        if against:
            arguments = [*share, f"--against={os.path.abspath(against)}"]
            if _on_cuda(turns[0]):
                arguments.append("--cuda")
            other_turns.append(_turn(path, arguments))
    load = monitor.result()
    model = _summarize(turns)
    other, ratio = None, None
    if against:
        other = _summarize(other_turns)
        ratio = other["p50"] / model["p50"]
    spread = round(spread_of(_rounds(model, other)), 4)
    # A machine that slows down leaves the ratio as it is, but not the two medians.
    widest = max([spread, *[spread_of(side["rounds_p50"]) for side in (model, other) if side]])
    return {
        "unit": "ms",
        "length": length,
        "threads": threads,
        "model": model,
        "original": other,
        "ratio": ratio,
        "load": load,
        "spread": spread,
        "disturbed": disturbances(load, widest, threads),
        # Only turns of the other model have none.
        "variant": cast("VariantDocument", turns[0]["variant"]),
        "device": cast("DeviceDocument", turns[0]["device"]),
    }


def _on_cuda(turn: Turn) -> bool:
    # A model on the CPU would make every bundle on a GPU look fast.
    return turn["variant"] is not None and turn["variant"]["engine"] == CUDA
