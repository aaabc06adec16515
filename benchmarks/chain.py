"""The optimization chain on Fashion-MNIST: each pass alone, and together, against one teacher.

    apt-get install dataset-fashion-mnist && .venv/bin/python benchmarks/chain.py

Every row is a whole `edgepack build` of the same trained network, judged by the shipped loader on
all 10,000 test pictures, none of which any training saw. The bundles then run in turns, each turn
in a process of its own on one thread, beside the fp32 bundle of the teacher: a machine whose speed
drifts is the same for all. Results go to benchmarks/results/chain.json.

Trainings are kept in the cache: a second run takes them from there. With --work, bundles and
reports stay in that folder, and rows that are there already are not built again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import record
from edgepack import graph
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.bench import percentiles

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
WEIGHTS = EXAMPLES / "weights" / "fashion-teacher.safetensors"
# A row is to show what it loses: gates that only a collapse misses.
GATES = "snr_db = -20\nagreement = 0\nmetric_ratio = 0\n"


@dataclass(frozen=True)
class Row:
    """One build.

    Attributes:
        name: as the table calls it.
        chain: its passes.
        goal: what it is to reach, in words; empty where it is there to compare with.
        training: function of the training samples, in examples/.
    """

    name: str
    chain: str
    goal: str = ""
    training: str = "fashion_resnet.py:training"


def rows(precision: str) -> list[Row]:
    """The table's rows; `precision` is what the trainings compute in."""
    recovery = f"distill:epochs=2:lr=1e-3:precision={precision}"
    half = "prune:structured=0.5:importance=taylor"
    ranks = "factorize:parameters=0.5"
    student = "distill:student=fashion_student.py:student:lr=0.01"
    small = f"distill:student=fashion_student.py:compact:epochs=6:lr=0.01:precision={precision}"
    return [
        Row("teacher", "none"),
        Row("quantize", "quantize", ">= 3.7x smaller, <= 0.3 points"),
        Row("prune, no recovery", half),
        Row("prune", f"{half},{recovery}", "half the parameters, <= 0.5 points, faster"),
        Row("prune 2:4", f"prune:pattern=2:4,{recovery}"),
        Row("factorize, no recovery", ranks),
        Row("factorize", f"{ranks},{recovery}", "half the layers' parameters, <= 0.5 points"),
        Row(
            "1,000 labels alone",
            f"{student}:alpha=0:epochs=200",
            training="fashion_student.py:labelled",
        ),
        Row(
            "distill, 1,000 labels",
            f"{student}:epochs=10",
            "19,938 parameters, >= 90 % top-1",
            "fashion_student.py:training",
        ),
        Row("prune + quantize", f"{half},{recovery},quantize"),
        Row("factorize + quantize", f"{ranks},{recovery},quantize"),
        Row("prune + factorize + quantize", f"{half},{ranks},{recovery},quantize"),
        Row(
            "prune 93 % + quantize",
            "prune:structured=0.93:importance=taylor,"
            f"distill:epochs=6:lr=2e-3:precision={precision},quantize",
            ">= 50x smaller, >= 10x faster, <= 1 point",
        ),
        Row(
            "distill + quantize",
            f"{small},quantize",
            ">= 50x smaller, >= 10x faster, <= 1 point",
            "fashion_student.py:many",
        ),
    ]


def _build(row: Row, work: Path) -> tuple[Path, dict[str, Any]]:
    output = work / f"{row.name.replace(' ', '-').replace(':', '-')}.edgepack"
    kept = output.with_suffix(".json")
    if kept.exists():
        return output, json.loads(kept.read_text())
    command = [
        sys.executable, "-m", "edgepack", "build", str(WEIGHTS), "--target", "cpu-fbgemm",
        "--manifest", str(_manifest(work)), "--training", row.training, "--chain", row.chain,
        "--latency", "none", "--no-emulate", "--output", str(output), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=EXAMPLES)
    if done.returncode:
        raise SystemExit(f"{row.name}: the build ended with {done.returncode}")
    kept.write_text(done.stdout)
    return output, json.loads(done.stdout)


def _manifest(work: Path) -> Path:
    """The teacher's manifest with gates that only a collapse misses."""
    text = (ROOT / "manifests" / "fashion-teacher.toml").read_text()
    head, rest = text.split("[gates.quality]\n")
    _, tail = rest.split("\n[", 1)
    text = f"{head}[gates.quality]\n{GATES}\n[{tail}".replace(
        '"../examples/fashion_resnet.py', f'"{EXAMPLES}/fashion_resnet.py'
    )
    path = work / "chain.toml"
    path.write_text(text)
    return path


def _figures(bundle: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What a bundle is and what its report says of it."""
    with Archive(str(bundle)) as archive:
        index = read_index(archive)
        model = onnx.load_model_from_string(archive.read(index.model))
    outputs, metric = report["quality"]["outputs"], report["quality"]["metric"]
    return {
        "model_bytes": report["bundle"]["model_bytes"],
        "bundle_bytes": report["bundle"]["bytes"],
        "parameters": graph.stats(model).parameters,
        "macs": graph.macs(model, {"image": np.zeros((1, 1, 28, 28), np.float32)}),
        "top1": metric["model"],
        "drop_points": metric["drop_points"],
        "snr_db": outputs["scores"]["snr_db"],
        "stages_seconds": {r["stage"]: r["seconds"] for r in report["ledger"]},
    }


def _turn(bundle: Path, seconds: float) -> float:
    command = [
        sys.executable, str(bundle), "bench-turn", "--queries=10", f"--seconds={seconds}",
        "--threads=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    p50 = percentiles(json.loads(done.stdout)["ns"])["p50"]
    assert p50 is not None
    return p50


def _time(bundles: dict[str, Path], found: dict[str, Any], rounds: int, seconds: float) -> None:
    times: dict[str, list[float]] = {name: [] for name in bundles}
    for _ in range(rounds):
        for name, bundle in bundles.items():
            times[name].append(_turn(bundle, seconds))
    first = next(iter(times.values()))
    for name, taken in times.items():
        found[name]["rounds_p50_ms"] = taken
        found[name]["p50_ms"] = statistics.median(taken)
        found[name]["faster"] = statistics.median(a / b for a, b in zip(first, taken, strict=True))


def _show(table: list[Row], found: dict[str, Any]) -> None:
    teacher = found[table[0].name]
    print(
        f"{'':29} {'model kB':>8} {'smaller':>8} {'bundle':>8} {'params':>10} {'MMACs':>6} "
        f"{'p50 ms':>7} {'faster':>7} {'top-1':>7} {'drop':>6}"
    )
    for row in table:
        one = found[row.name]
        print(
            f"{row.name:29} {one['model_bytes'] / 1e3:8.1f} "
            f"{teacher['model_bytes'] / one['model_bytes']:7.1f}x "
            f"{one['bundle_bytes'] / 1e3:8.1f} {one['parameters']:10,} "
            f"{one['macs'] / 1e6:6.1f} {one['p50_ms']:7.3f} {one['faster']:6.2f}x "
            f"{100 * one['top1']:6.2f} {one['drop_points']:6.2f}  {row.goal}"
        )


def main() -> None:
    """Build every row, time the bundles, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose names begin so, and the teacher")
    parser.add_argument("--work", type=Path, help="a folder that keeps what was built")
    parser.add_argument("--precision", default="bf16", help="of the trainings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    options = parser.parse_args()
    table = rows(options.precision)
    table = [row for row in table if row == table[0] or row.name.startswith(options.only)]
    with tempfile.TemporaryDirectory(prefix="edgepack-chain-") as folder:
        work, bundles, found = options.work or Path(folder), {}, {}
        work.mkdir(parents=True, exist_ok=True)
        for row in table:
            bundles[row.name], report = _build(row, work)
            figures = _figures(bundles[row.name], report)
            found[row.name] = {"chain": row.chain, **figures, "goal": row.goal}
            print(f"{row.name}: {100 * found[row.name]['top1']:.2f} %", flush=True)
        _time(bundles, found, options.rounds, options.seconds)
    _show(table, found)
    if options.only:
        return
    settings = {"training_precision": options.precision, "threads": 1, "test_pictures": 10_000}
    record.write("chain", **settings, rows=found)


if __name__ == "__main__":
    main()
