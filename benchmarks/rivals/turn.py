"""Run one model in this process: python turn.py ENGINE MODEL SAMPLES THREADS SECONDS ANSWERS.

Prints the nanoseconds of each call as JSON. With SECONDS of 0 it writes the answers to the samples
instead, as ANSWERS.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rivals.feeds import read_feeds

SAMPLES = 64
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def open_model(engine: str, model: str, threads: int, feed: dict[str, np.ndarray]) -> Run:
    """Return what answers a feed with the model's first output."""
    if engine == "onnxruntime":
        return _open_onnxruntime(model, threads)
    if engine.startswith("openvino"):
        return _open_openvino(model, threads, engine.removeprefix("openvino-"), feed)
    if engine == "edgepack":
        return _open_bundle(model, threads)
    return _open_torch(model, threads, engine == "torch-compile")


def _open_onnxruntime(model: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0]


def _open_openvino(model: str, threads: int, precision: str, feed: dict[str, np.ndarray]) -> Run:
    import openvino as ov

    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()

    def run(feed: dict[str, np.ndarray]) -> np.ndarray:
        return request.infer(feed, share_inputs=True)[0]

    return run


def _open_bundle(model: str, threads: int) -> Run:
    import edgepack

    bundle = edgepack.load(model, threads=threads)
    return lambda feed: next(iter(bundle(**feed).values()))


def _open_torch(model: str, threads: int, compile_it: bool) -> Run:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    module = torch.export.load(model).module()
    if compile_it:
        module = torch.compile(module)

    def run(feed: dict[str, np.ndarray]) -> np.ndarray:
        answer = module(*(torch.from_numpy(array) for array in feed.values()))
        first = answer[0] if isinstance(answer, (tuple, list)) else answer
        return first.numpy()

    return run


def main() -> None:
    """Time the median-sized sample, or answer all."""
    engine, model, samples, threads, seconds, answers = sys.argv[1:]
    feeds = sorted(read_feeds(Path(samples), SAMPLES), key=lambda f: next(iter(f.values())).size)
    run = open_model(engine, model, int(threads), feeds[0])
    if float(seconds) == 0:
        np.save(answers, np.concatenate([run(feed).copy() for feed in feeds]))
        return
    feed = feeds[len(feeds) // 2]
    clock = time.perf_counter_ns
    for budget, times in ((0.15, []), (float(seconds), [])):
        end = clock() + int(budget * 1e9)
        while clock() < end or len(times) < 5:
            started = clock()
            run(feed)
            times.append(clock() - started)
    print(json.dumps({"ns": times}))


if __name__ == "__main__":
    main()
