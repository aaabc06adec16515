"""`bench`: single-stream latency of the loader's own call, by MLPerf's rules.

Each model is measured in a process of its own, since the threads of several sessions in one
process disturb each other; against a second model the two take turns, so that a machine whose
speed drifts is the same for both.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional

from . import device
from .archive import Archive
from .errors import DeviceError
from .index import read_index

# MLPerf Inference: at least so many queries and so many seconds.
LENGTHS = {"smoke": (64, 6.0), "quick": (128, 10.0), "normal": (1024, 60.0)}
# The fewest queries from which a percentile may be told (MLPerf Inference, early stopping).
FEWEST = {"p50": 1, "p90": 64, "p95": 130, "p99": 662}
ROUNDS = 3
WARM_UP_SECONDS = 0.3


def percentiles(nanoseconds: List[int]) -> Dict[str, Optional[float]]:
    """p50, p90, p95 and p99 in ms by the nearest rank; None below the fewest queries."""
    ordered = sorted(nanoseconds)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e6

    return {
        name: at(int(name[1:]) / 100) if len(ordered) >= fewest else None
        for name, fewest in FEWEST.items()
    }


def _time(call: Callable[[], Any], queries: int, seconds: float) -> List[int]:
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


def child(path: str, against: str, queries: int, seconds: float, threads: int) -> Dict[str, Any]:
    """One turn, in this process: the bundle's loader, or the bare engine on another ONNX."""
    from .model import open_model
    from .onnx_session import OnnxSession
    from .verify import reference_feeds

    with Archive(path) as archive:
        index = read_index(archive)
        feed = next(reference_feeds(archive, index))
        started = time.perf_counter()
        if against:
            with open(against, "rb") as file:
                call = OnnxSession(file.read(), threads=threads).run
        else:
            call = open_model(archive, index, threads).run
        load_seconds = time.perf_counter() - started
    times = _time(lambda: call(feed), queries, seconds)
    return {
        "ns": times,
        "load_seconds": load_seconds,
        "peak_rss_bytes": device.peak_rss(),
    }


def _turn(path: str, against: str, queries: int, seconds: float, threads: int) -> Dict[str, Any]:
    flags = [
        flag
        for flag, on in (
            ("-I", sys.flags.isolated),
            ("-S", sys.flags.no_site),
            ("-s", sys.flags.no_user_site),
        )
        if on
    ]
    arguments = [
        "--queries={}".format(queries),
        "--seconds={}".format(seconds),
        "--threads={}".format(threads),
        "--against={}".format(against),
    ]
    done = subprocess.run(
        [sys.executable, *flags, path, "bench-turn", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if done.returncode != 0:
        raise DeviceError(
            "bench-failed",
            "a process that measures the latency failed",
            why=done.stderr.decode("utf-8", "replace").strip()[-2000:]
            or "exit status {}".format(done.returncode),
            hint="python3 BUNDLE verify tells whether the bundle runs here at all",
        )
    turn: Dict[str, Any] = json.loads(done.stdout.decode("utf-8"))
    return turn


def _summary(turns: List[Mapping[str, Any]]) -> Dict[str, Any]:
    times = [ns for turn in turns for ns in turn["ns"]]
    return {
        **percentiles(times),
        "queries": len(times),
        "seconds": sum(times) / 1e9,
        "rounds_p50": [percentiles(turn["ns"])["p50"] for turn in turns],
        "load_seconds": min(turn["load_seconds"] for turn in turns),
        "peak_rss_bytes": max(turn["peak_rss_bytes"] for turn in turns),
    }


def bench(path: str, *, length: str, against: str = "", threads: int = 0) -> Dict[str, Any]:
    """Measure the bundle, and beside it in the same run another ONNX model.

    Args:
        path: the bundle.
        length: a key of LENGTHS.
        against: an ONNX file that takes the same inputs; empty for none.
        threads: threads within an operator; 0 takes every physical core.

    Returns latencies in ms; `ratio` is the other model's p50 over the bundle's.
    """
    from .verify import this_device

    queries, seconds = LENGTHS[length]
    share = math.ceil(queries / ROUNDS), seconds / ROUNDS
    turns: Dict[str, List[Mapping[str, Any]]] = {"model": [], "against": []}
    for _ in range(ROUNDS):
        if against:
            turns["against"].append(_turn(path, os.path.abspath(against), *share, threads))
        turns["model"].append(_turn(path, "", *share, threads))
    model = _summary(turns["model"])
    other = _summary(turns["against"]) if against else None
    return {
        "unit": "ms",
        "length": length,
        "threads": threads,
        "model": model,
        "original": other,
        "ratio": other["p50"] / model["p50"] if other else None,
        "device": this_device(),
    }
