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
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

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

# Minimum queries and seconds, as in MLPerf Inference.
LENGTHS = {"smoke": (64, 6.0), "quick": (128, 10.0), "normal": (1024, 60.0)}
# Fewest queries that support each percentile (MLPerf Inference, early stopping).
FEWEST = {"p50": 1, "p90": 64, "p95": 130, "p99": 662}
# The two models alternate so often; a round takes a third of the queries and of the time.
ROUNDS = 3
WARM_UP_SECONDS = 0.3


def percentiles(nanoseconds: List[int]) -> Dict[str, Optional[float]]:
    """Return p50, p90, p95 and p99 in ms by the nearest rank; None below the fewest queries.

    Of [1, 2, 3, 4] ms the nearest rank of p50 is ceil(0.5 * 4) = 2, so p50 is 2 ms.
    """
    ordered = sorted(nanoseconds)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e6

    values: Dict[str, Optional[float]] = {}
    for name, fewest in FEWEST.items():
        values[name] = None
        if len(ordered) >= fewest:
            values[name] = at(int(name[1:]) / 100)
    return values


def _time(call: Callable[[], Any], queries: int, seconds: float) -> List[int]:
    # The first calls are slower: caches are cold and the CPU's clock ramps up.
    clock = time.perf_counter_ns
    until = clock() + int(WARM_UP_SECONDS * 1e9)
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
) -> Tuple[Callable[[], Any], float, Optional[Choice]]:
    """Return one inference as a call, the seconds that loading took, and the chosen variant.

    Args:
        path: the bundle; the call runs on its first reference sample.
        against: an ONNX file to run in its place, by bare onnxruntime; empty for none.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the bundle's variant; "" for the best that fits.
        cuda: run `against` on the GPU.

    Raises InputError if that file cannot be read.
    """
    from ..model import open_model
    from ..session.onnx_session import OnnxSession
    from .verify import reference_feeds

    with Archive(path) as archive:
        index = read_index(archive)
        feed = next(reference_feeds(archive, index))
        started = time.perf_counter()
        choice = None
        if against:
            call = OnnxSession(_read(against), threads=threads, cuda=cuda).run
        else:
            model = open_model(archive, index, threads, variant=variant)
            call, choice = model.run, model.choice
        load_seconds = time.perf_counter() - started
    return (lambda: call(feed)), load_seconds, choice


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
) -> Dict[str, Any]:
    """Measure one turn in this process: the bundle, or the bare engine on another ONNX."""
    import numpy as np

    call, load_seconds, choice = open_call(path, against, threads, variant, cuda)
    return {
        "ns": _time(call, queries, seconds),
        "load_seconds": load_seconds,
        "peak_rss_bytes": machine.peak_rss(),
        "variant": choice and choice.to_json(),
        "device": choice and {**choice.device, "numpy": np.__version__},
    }


def _turn(path: str, arguments: Sequence[str]) -> Dict[str, Any]:
    # The child must import from the same places as this process.
    flags = [
        flag
        for flag, on in (
            ("-I", sys.flags.isolated),
            ("-S", sys.flags.no_site),
            ("-s", sys.flags.no_user_site),
        )
        if on
    ]
    process = subprocess.run(
        [sys.executable, *flags, *program(path), "bench-turn", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        turn: Dict[str, Any] = json.loads(process.stdout.decode("utf-8"))
    except ValueError as error:
        raise DeviceError(
            "bench-failed",
            "the process that measures the latency failed",
            why=process.stderr.decode("utf-8", "replace").strip()[-2000:]
            or f"exit status {process.returncode}",
            hint="python3 BUNDLE verify shows if the bundle runs here at all",
        ) from error
    if "error" in turn:
        fields = turn["error"]
        raise EdgepackError(fields["code"], fields["what"], why=fields["why"], hint=fields["hint"])
    return turn


def _summary(turns: List[Mapping[str, Any]]) -> Dict[str, Any]:
    times: List[int] = []
    for turn in turns:
        times += turn["ns"]
    return {
        **percentiles(times),
        "queries": len(times),
        "seconds": sum(times) / 1e9,
        "rounds_p50": [percentiles(turn["ns"])["p50"] for turn in turns],
        "load_seconds": min(turn["load_seconds"] for turn in turns),
        "peak_rss_bytes": max(turn["peak_rss_bytes"] for turn in turns),
    }


def _rounds(model: Mapping[str, Any], other: Optional[Mapping[str, Any]]) -> List[float]:
    """Return the speed-up of each round, or its median latency if there is no second model.

    A machine that slows down slows both sides of a round, so their ratio stays.
    """
    if other is None:
        return list(model["rounds_p50"])
    # Rounds of 10 and 20 ms against 5 and 10 ms are both a speed-up of 2, without any spread.
    pairs = zip(other["rounds_p50"], model["rounds_p50"])
    return [theirs / ours for theirs, ours in pairs]


def bench(
    path: str, *, length: str, against: str = "", threads: int = 0, variant: str = ""
) -> Dict[str, Any]:
    """Measure the latency of the bundle and, in the same run, of another ONNX model.

    Args:
        path: the bundle.
        length: a key of LENGTHS.
        against: an ONNX file with the same inputs; empty for none. It runs in onnxruntime, on the
            GPU if the bundle does so with onnxruntime, else on the CPU.
        threads: threads within an operator; 0 takes every physical core.
        variant: the name of the bundle's variant; "" for the best that fits.

    Returns latencies in ms; `ratio` is the other model's p50 over the bundle's, `load` the load by
    other processes, `spread` the variation between rounds, and `disturbed` the reasons not to rely
    on the figures (empty on a quiet machine).
    """
    queries, seconds = LENGTHS[length]
    share = (
        f"--queries={math.ceil(queries / ROUNDS)}",
        f"--seconds={seconds / ROUNDS}",
        f"--threads={threads}",
    )
    turns: Dict[str, List[Mapping[str, Any]]] = {"model": [], "against": []}
    monitor = LoadMonitor()
    for _ in range(ROUNDS):
        turns["model"].append(_turn(path, [*share, f"--variant={variant}"]))
        if against:
            on_gpu = turns["model"][0]["variant"]["engine"] == CUDA
            other_file = f"--against={os.path.abspath(against)}"
            turns["against"].append(_turn(path, [*share, other_file, *["--cuda"] * on_gpu]))
    load = monitor.result()
    model = _summary(turns["model"])
    other, ratio = None, None
    if against:
        other = _summary(turns["against"])
        ratio = other["p50"] / model["p50"]
    spread = round(spread_of(_rounds(model, other)), 4)
    return {
        "unit": "ms",
        "length": length,
        "threads": threads,
        "model": model,
        "original": other,
        "ratio": ratio,
        "load": load,
        "spread": spread,
        "disturbed": disturbances(load, spread, threads),
        "variant": turns["model"][0]["variant"],
        "device": turns["model"][0]["device"],
    }
