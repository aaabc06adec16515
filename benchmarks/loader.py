"""What the loader costs over the bare engine: a call, in us, and loading a bundle, in ms.

    .venv/bin/python benchmarks/loader.py

A call: the loader's and `InferenceSession.run` itself take turns on one and the same session, so
that nothing differs but the loader. Loading: each in a process of its own, in turns, numpy and
onnxruntime imported beforehand; the bundle's side opens the archive, checks the index, the device
and the model's hash, and starts the session, while the bare side reads the model from a file and
starts the same session. Importing the loader out of the bundle is told apart. Results go to
benchmarks/results/loader.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import record
from edgepack import bundle, load
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.verify import reference_feeds
from edgepack.runtime.model import Model
from edgepack.runtime.tensor import Tensor

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo" / "efficientnet-lite0-cpu-fbgemm.edgepack"
GOAL_CALL_US, GOAL_LOAD_MS = 20.0, 50.0
WARM_UP = 50

LOAD = """
import json, sys, time
import numpy, onnxruntime
clock = time.perf_counter
started = clock()
sys.path.insert(0, sys.argv[1])
from runtime.model import load
imported = clock()
load(threads=1)
print(json.dumps({"import": imported - started, "load": clock() - imported}))
"""
BARE = """
import json, sys, time
import numpy, onnxruntime
clock = time.perf_counter
started = clock()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
with open(sys.argv[1], "rb") as file:
    model = file.read()
onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
print(json.dumps({"load": clock() - started}))
"""


def small_bundle(path: Path) -> Path:
    """A single product of matrices: hardly anything but the call."""
    weights = np.eye(8, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    feed = np.ones((1, 1, 8), np.float32)
    contents = bundle.Contents(
        name="small", target="", device={}, inputs=[Tensor("x", "float32", ("batch", 8))],
        outputs=[Tensor("y", "float32", ("batch", 8))], model=model.SerializeToString(),
        variants=[Variant("onnxruntime", "onnxruntime")],
        reference=[feed], original=[feed], built=[feed], gates={"quality": {}, "fidelity": {}},
        metric="", provenance={}, tools={}, requirements="",
    )  # fmt: skip
    bundle.write(path, contents)
    return path


def call_overhead(path: Path, pairs: int) -> dict[str, float]:
    """p50 of both calls, and the median difference of `pairs` neighbouring calls, in us."""
    model: Model = load(path, threads=1)
    with Archive(str(path)) as archive:
        feed = next(reference_feeds(archive, read_index(archive)))
    run = model._session._run

    def bare() -> Any:
        return run(None, feed)

    def through_loader() -> Any:
        return model(**feed)

    for _ in range(WARM_UP):
        bare()
        through_loader()
    times: dict[str, list[float]] = {"bare": [], "loader": []}
    for i in range(pairs):
        # Each goes first in every other pair: what a call leaves in the caches favours neither.
        order: list[tuple[str, Callable[[], Any]]] = [("bare", bare), ("loader", through_loader)]
        for name, call in order if i % 2 else reversed(order):
            started = time.perf_counter_ns()
            call()
            times[name].append((time.perf_counter_ns() - started) / 1e3)
    return {
        "bare_us": statistics.median(times["bare"]),
        "loader_us": statistics.median(times["loader"]),
        "overhead_us": statistics.median(
            loader - bare for loader, bare in zip(times["loader"], times["bare"], strict=True)
        ),
    }


def _child(code: str, path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def load_overhead(path: Path, rounds: int) -> dict[str, float]:
    """Medians over processes that take turns, in ms."""
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder, Archive(str(path)) as archive:
        model = Path(folder) / "model.onnx"
        model.write_bytes(archive.read(read_index(archive).model))
        turns = [(_child(BARE, model), _child(LOAD, path)) for _ in range(rounds)]
    return {
        "bare_ms": 1e3 * statistics.median(bare["load"] for bare, _ in turns),
        "load_ms": 1e3 * statistics.median(loader["load"] for _, loader in turns),
        "overhead_ms": 1e3 * statistics.median(b["load"] - a["load"] for a, b in turns),
        "import_ms": 1e3 * statistics.median(loader["import"] for _, loader in turns),
    }


def main() -> None:
    """Measure the small model and, after `make demo`, EfficientNet-Lite0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="processes on either side")
    parser.add_argument("--pairs", type=int, default=2000, help="of calls")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
        bundles = {"one MatMul": small_bundle(Path(folder) / "small.edgepack")}
        if DEMO.is_file():
            bundles["EfficientNet-Lite0 int8"] = DEMO
        for name, path in bundles.items():
            found[name] = {
                "call": call_overhead(path, options.pairs),
                "load": load_overhead(path, options.rounds),
            }
    print(f"{'':<26}{'bare':>12}{'loader':>12}{'overhead':>12}   goal")
    for name, row in found.items():
        call, loading = row["call"], row["load"]
        print(
            f"{name + ', call':<26}{call['bare_us']:>9.1f} us{call['loader_us']:>9.1f} us"
            f"{call['overhead_us']:>9.2f} us   under {GOAL_CALL_US:.0f} us"
        )
        print(
            f"{name + ', load':<26}{loading['bare_ms']:>9.1f} ms{loading['load_ms']:>9.1f} ms"
            f"{loading['overhead_ms']:>9.2f} ms   under {GOAL_LOAD_MS:.0f} ms"
            f" (and {loading['import_ms']:.1f} ms to import the loader)"
        )
    goals = {"overhead_us": GOAL_CALL_US, "overhead_ms": GOAL_LOAD_MS}
    turns = {"pairs": options.pairs, "rounds": options.rounds}
    record.write("loader", threads=1, **turns, goals=goals, models=found)


if __name__ == "__main__":
    main()
