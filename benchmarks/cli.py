"""How long `edgepack --help` takes, beside an empty Python: nothing heavy may be imported for it.

    .venv/bin/python benchmarks/cli.py

The two take turns, each in a process of its own, from start to exit. Results go to
benchmarks/results/cli.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import record

ROOT = Path(__file__).resolve().parents[1]
GOAL_SECONDS = 0.5
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "edgepack --help": [sys.executable, "-m", "edgepack", "--help"],
    "edgepack build --help": [sys.executable, "-m", "edgepack", "build", "--help"],
    "edgepack targets list": [sys.executable, "-m", "edgepack", "targets", "list"],
}


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    for command in COMMANDS.values():
        _seconds(command)  # the first run reads files from the disk and writes .pyc files
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, command in COMMANDS.items():
            times[name].append(_seconds(command))
    bare = statistics.median(times["python -c pass"])
    found = {}
    for name, seconds in times.items():
        p50 = statistics.median(seconds)
        found[name] = {"p50_ms": 1e3 * p50, "min_ms": 1e3 * min(seconds), "ratio": p50 / bare}
        print(
            f"{name:<24}{1e3 * p50:>9.1f} ms{p50 / bare:>8.1f}x   min {1e3 * min(seconds):.1f} ms"
        )
    print(f"goal: edgepack --help under {1e3 * GOAL_SECONDS:.0f} ms")
    record.write("cli", rounds=options.rounds, goal_ms=1e3 * GOAL_SECONDS, commands=found)


if __name__ == "__main__":
    main()
