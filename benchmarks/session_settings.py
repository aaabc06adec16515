"""Session settings of onnxruntime and OpenVINO, each beside the engine's own choice.

    .venv/bin/python benchmarks/session_settings.py FOLDER...

A folder holds model.onnx and evaluation.npz. Every setting runs in a process of its own, in turns
with all the others, on the first evaluation sample. `speed` is the median, over the turns, of the
ratio to the engine's own choice, above 1 for the faster setting. Settings of threads are compared
by the fastest call of a turn with every core; all others on one thread, by its CPU time, which
other processes hardly change. Results go to benchmarks/results/session-settings.json, to which
each run adds its networks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import record
from edgepack.runtime.bundle.engines import Settings
from edgepack.runtime.session.onnx_session import import_engine
from edgepack.runtime.session.openvino_session import OpenVinoSession, import_openvino
from edgepack.runtime.tensor import Tensor

Call = Callable[[], object]
Feed = Mapping[str, np.ndarray]
TURNS, WARM_UP_S, TIMED_S, FEWEST = 3, 0.2, 0.4, 5
# Setting -> the attributes and entries of onnxruntime's options that differ from its defaults.
ONNXRUNTIME: dict[str, dict[str, Any]] = {
    "default": {},
    "one thread": {"intra_op_num_threads": 1},
    "threads sleep while they wait": {"session.intra_op.allow_spinning": "0"},
    "no arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
    "extended graph optimization": {"level": "ORT_ENABLE_EXTENDED"},
    "basic graph optimization": {"level": "ORT_ENABLE_BASIC"},
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
    "optimized model, ORT format": {"format": "ort"},
    "IO binding": {"binding": True},
}
# Setting -> properties of OpenVINO, and whether it plans for the sample's shape alone. Its default
# binds threads to cores.
OPENVINO: dict[str, dict[str, Any]] = {
    "default": {},
    "one thread": {"INFERENCE_NUM_THREADS": 1},
    "no pinning": {"ENABLE_CPU_PINNING": False},
    "static shape": {"static": True},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16"},
}


# Settings of threads, which run with all cores.
ONE_THREAD = "one thread"
OF_THREADS = ("default", ONE_THREAD, "threads sleep while they wait", "no pinning")


def read_feed(folder: Path) -> dict[str, np.ndarray]:
    """Return the first evaluation sample as a batch of one."""
    wanted = [entry.name for entry in onnx.load(folder / "model.onnx").graph.input]
    with np.load(folder / "evaluation.npz") as samples:
        return {name: samples[name][:1] for name in wanted}


def open_onnxruntime(path: Path, feed: Feed, setting: Mapping[str, Any]) -> Call:
    """Return one inference in onnxruntime."""
    ort = import_engine()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for key, value in setting.items():
        if key == "level":
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, value)
        elif "." in key:
            options.add_session_config_entry(key, value)
        elif key not in ("format", "binding"):
            setattr(options, key, value)
    source = str(path)
    if "format" in setting:
        source = str(Path(tempfile.mkdtemp()) / "model.ort")
        writing = ort.SessionOptions()
        writing.log_severity_level = 4
        writing.optimized_model_filepath = source
        writing.add_session_config_entry("session.save_model_format", "ORT")
        ort.InferenceSession(str(path), writing, providers=["CPUExecutionProvider"])
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    if "binding" not in setting:
        return lambda: session.run(None, feed)

    def run_bound() -> object:
        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return run_bound


def open_openvino(path: Path, feed: Feed, setting: Mapping[str, Any]) -> Call:
    """Return one inference in OpenVINO."""
    ov = import_openvino()
    core = ov.Core()
    network = core.read_model(path)
    if setting.get("static"):
        network.reshape({name: list(array.shape) for name, array in feed.items()})
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    properties.update({key: value for key, value in setting.items() if key != "static"})
    request = core.compile_model(network, "CPU", properties).create_infer_request()
    return lambda: request.infer(feed, share_inputs=True, share_outputs=False)


def open_loader(path: Path, feed: Feed, setting: Mapping[str, Any]) -> Call:
    """Return one inference in the session of the loader, for its own cost beside OpenVINO's."""
    model = onnx.load(path)
    inputs = []
    for entry in model.graph.input:
        array = feed[entry.name]
        inputs.append(Tensor(entry.name, str(array.dtype), ("batch", *array.shape[1:])))
    outputs = []
    for entry in model.graph.output:
        kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        outputs.append(Tensor(entry.name, str(kind), ("batch",)))
    session = OpenVinoSession(path.read_bytes(), inputs, outputs, Settings(**setting))
    return lambda: session.run(feed)


ENGINES: dict[str, tuple[Callable[[Path, Feed, Mapping[str, Any]], Call], Any]] = {
    "onnxruntime": (open_onnxruntime, ONNXRUNTIME),
    "OpenVINO": (open_openvino, OPENVINO),
    "loader": (open_loader, {ONE_THREAD: {"threads": 1}, "loader": {}}),
}


def measure_turn(folder: Path, engine: str, name: str) -> dict[str, float]:
    """Return the median of one call in ms, and the seconds to load; in this process."""
    feed = read_feed(folder)
    start, settings = ENGINES[engine]
    clock = time.perf_counter
    begun = clock()
    setting = settings[name]
    if name not in OF_THREADS:
        setting = {**settings[ONE_THREAD], **setting}
    call = start(folder / "model.onnx", feed, setting)
    call()
    load = clock() - begun
    until = clock() + WARM_UP_S
    while clock() < until:
        call()
    times: list[float] = []
    cpu = time.process_time()
    until = clock() + TIMED_S
    while clock() < until or len(times) < FEWEST:
        begun = clock()
        call()
        times.append(clock() - begun)
    cpu = time.process_time() - cpu
    return {
        "cpu_ms": 1e3 * cpu / len(times),
        "fastest_ms": 1e3 * min(times),
        "load_s": load,
    }


def measure(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each setting of each engine."""
    runs = []
    for engine, (_, settings) in ENGINES.items():
        runs += [(engine, name) for name in settings]
    runs.remove(("loader", ONE_THREAD))
    results: dict[tuple[str, str], list[dict[str, float]]] = {run: [] for run in runs}
    failures: dict[tuple[str, str], str] = {}
    for _ in range(TURNS):
        for run in runs:
            command = [sys.executable, __file__, str(folder), "--turn", *run]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failures[run] = done.stderr.strip().splitlines()[-1]
                continue
            results[run].append(json.loads(done.stdout))
    rows = []
    for engine, name in runs:
        turns = results[engine, name]
        if not turns:
            rows.append({"engine": engine, "setting": name, "failed": failures[engine, name]})
            continue
        figure, other = "cpu_ms", ONE_THREAD
        if name in OF_THREADS:
            figure, other = "fastest_ms", "default"
        base = results["OpenVINO" if engine == "loader" else engine, other]
        ratios = [a[figure] / b[figure] for a, b in zip(base, turns, strict=True)]
        rows.append(
            {
                "engine": engine,
                "setting": name,
                figure: round(min(turn[figure] for turn in turns), 4),
                "load_s": round(min(turn["load_s"] for turn in turns), 3),
                "speed": round(statistics.median(ratios), 3),
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        )
    return rows


def main() -> None:
    """Measure the networks of the command line, or one turn of one setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--turn", nargs=2, metavar=("ENGINE", "SETTING"))
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(measure_turn(options.folders[0], *options.turn)))
        return
    networks = record.read("session-settings").get("networks", {})
    for folder in options.folders:
        networks[folder.name] = measure(folder)
        record.write("session-settings", networks=networks)


if __name__ == "__main__":
    main()
