"""Worker process of the timing: runs one model as the loader does, when it is told to.

It reads one request a line and answers each with one line of JSON, the first unasked:

    -> 0.1 3                                  for 0.1 s, and at least 3 calls
    <- {"ns": [412030, 409877, ...], "peak_rss_bytes": 81264640}

It imports nothing but the loader, so that its memory and its threads are those of a device.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.runtime.bundle.engines import Settings
from edgepack.runtime.device.machine import peak_rss
from edgepack.runtime.errors import EdgepackError
from edgepack.runtime.session.cpu import open_session
from edgepack.runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.runtime.documents import TensorDocument

# Files of the folder that parent and worker share.
MODEL, FEED, TASK = "model.onnx", "feed.npz", "task.json"


def main(folder: Path) -> None:
    """Open the model of a folder, and time its calls until stdin ends."""
    # Whatever an engine prints must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(document: dict[str, object]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        call = _open(folder)
        call()
    except EdgepackError as error:
        answer({"error": {"code": error.code, "what": error.what, "why": error.why}})
        return
    except Exception as error:  # noqa: BLE001 - engines' exceptions share no other base
        answer({"error": {"code": "engine-failed", "what": "the engine fails", "why": str(error)}})
        return
    answer({"ns": [], "peak_rss_bytes": peak_rss()})
    for line in sys.stdin:
        seconds, fewest = line.split()
        answer({"ns": _time(call, float(seconds), int(fewest)), "peak_rss_bytes": peak_rss()})


def _open(folder: Path) -> Callable[[], object]:
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    inputs, outputs = map(_read_tensors, (task["inputs"], task["outputs"]))
    model = (folder / MODEL).read_bytes()
    session = open_session(task["engine"], model, inputs, outputs, Settings(**task["settings"]))
    with np.load(folder / FEED) as arrays:
        # Numbered, since an input may be called "file", as the first parameter of `savez` is.
        feed = {tensor.name: arrays[str(i)] for i, tensor in enumerate(inputs)}
    return lambda: session.run(feed)


def _read_tensors(documents: list[TensorDocument]) -> list[Tensor]:
    tensors = []
    for document in documents:
        shape = tuple(document["shape"])
        tensors.append(Tensor(document["name"], document["dtype"], shape))
    return tensors


def _time(call: Callable[[], object], seconds: float, fewest: int) -> list[int]:
    # The processor's caches are full of another model: a tenth of the turn is not timed, one call
    # at least.
    clock = time.perf_counter_ns
    until = clock() + int(seconds * 1e8)
    call()
    while clock() < until:
        call()
    times: list[int] = []
    until = clock() + int(seconds * 1e9)
    while len(times) < fewest or clock() < until:
        started = clock()
        call()
        times.append(clock() - started)
    return times


if __name__ == "__main__":
    main(Path(sys.argv[1]))
