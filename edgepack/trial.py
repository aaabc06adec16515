"""Evaluate an ONNX file that somebody else made, first in a process of its own with limits.

A file of 200 bytes can unfold into millions of nodes, fold a constant of gigabytes, or loop for
ever. So whatever expands or runs a graph for the first time happens in a child: its memory is
limited to what it takes before it begins plus an allowance, its time by the clock. The allowances
grow with the model and the inputs, so that a large network is not mistaken for a bomb.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack import files
from edgepack.errors import EdgepackError, SourceError

# What each task may take: bytes and seconds at least, and more for each byte of the model (8 times
# its size: the file, the parsed graph, the weights as onnxruntime packs them) and of the inputs
# (activations of a convolutional network take some 100 times the size of its picture).
LOAD_BYTES, RUN_BYTES = 1 << 30, 4 << 30
PER_MODEL_BYTE, PER_INPUT_BYTE = 8, 128
SECONDS, SECONDS_PER_GIB, SECONDS_PER_INPUT_MIB = 60.0, 120.0, 1.0
FACTOR = "EDGEPACK_LIMITS"
# What a thread of onnxruntime reserves for its stack and its allocations.
BYTES_PER_THREAD = 16 << 20
REQUEST, RESULT, INPUTS, MODEL = "request.json", "result.json", "inputs.npz", "model.onnx"
LARGE_TENSOR = 1 << 16
_SIGNALS_OF_NO_MEMORY = (signal.SIGABRT, signal.SIGKILL)
# How the libraries say that they got no memory; they have no exception in common.
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|bad_array_new|MemoryError|[Ff]ailed to allocate|[Cc]annot allocate|"
    r"[Oo]ut of memory|length_error|Unable to allocate|alloc failed"
)


@dataclass(frozen=True)
class Limits:
    """What a child may take.

    Attributes:
        memory: bytes beyond what it has mapped before it begins.
        seconds: by the clock.
    """

    memory: int
    seconds: float

    @classmethod
    def of(cls, base: int, model_bytes: int, input_bytes: int = 0) -> Limits:
        """The limits for a model and its inputs, at most what this machine has left."""
        factor = _factor()
        memory = base + PER_MODEL_BYTE * model_bytes + PER_INPUT_BYTE * input_bytes
        seconds = SECONDS + SECONDS_PER_GIB * model_bytes / (1 << 30)
        seconds += SECONDS_PER_INPUT_MIB * input_bytes / (1 << 20)
        return cls(min(int(factor * memory), _available()), factor * seconds)


def load(name: str, model: Path | str | bytes, model_bytes: int) -> None:
    """Check, infer the shapes of, and load a model in a child.

    What onnx or onnxruntime merely refuse is not reported here: they refuse it again.

    Args:
        name: what messages call it.
        model: an ONNX file, or the model serialised.
        model_bytes: its size with its external data.

    Raises:
        SourceError: source-onnx-memory, source-onnx-time, source-onnx-crash.
    """
    with files.temporary_folder() as folder:
        request = {"task": "load", "model": _file(model, folder)}
        _attempt(folder, request, Limits.of(LOAD_BYTES, model_bytes), name)


def run(
    name: str, model: Path | str | bytes, model_bytes: int, inputs: Mapping[str, np.ndarray]
) -> None:
    """Run a model once in a child. Raises as `load` does."""
    with files.temporary_folder() as folder:
        named: dict[str, Any] = {f"input-{key}": array for key, array in inputs.items()}
        with (folder / INPUTS).open("wb") as file:
            np.savez(file, **named)
        limits = Limits.of(RUN_BYTES, model_bytes, sum(a.nbytes for a in inputs.values()))
        _attempt(folder, {"task": "run", "model": _file(model, folder)}, limits, name)


def _file(model: Path | str | bytes, folder: Path) -> str:
    """Return the file of a model, written into `folder` where it has none yet."""
    if not isinstance(model, bytes):
        return str(Path(model).resolve())
    (folder / MODEL).write_bytes(model)
    return str(folder / MODEL)


def fold(model: bytes, options: Mapping[str, Any]) -> bytes:
    """Return what onnxsim makes of a model, in a child.

    Args:
        model: serialised.
        options: of `onnxsim.simplify`.

    Raises:
        SourceError: as `load` does.
        RuntimeError: with onnxsim's reason, where it fails.
    """
    with files.temporary_folder() as folder:
        request = {"task": "fold", "model": _file(model, folder), "options": dict(options)}
        failure = _attempt(folder, request, Limits.of(LOAD_BYTES, len(model)), "the graph")
        if failure:
            raise RuntimeError(failure)
        return (folder / "folded.onnx").read_bytes()


def _attempt(folder: Path, request: Mapping[str, Any], limits: Limits, name: str) -> str:
    """Run a task in a child; returns why a library refused the model, "" where none did."""
    document = {**request, "memory": limits.memory}
    (folder / REQUEST).write_text(json.dumps(document), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # Each arena reserves 64 MiB, which the limit would count.
        "MALLOC_ARENA_MAX": "2",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limits.seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            "source-onnx-time",
            f"{name} takes too long to {_doing(request)}",
            why=f"it was not done after {limits.seconds:,.0f} s",
            hint="a loop without an end? if the model is sound and the machine slow: "
            f"{FACTOR}=4 allows four times as much",
        ) from error
    if not (folder / RESULT).is_file():
        # What gets no memory is aborted by the C++ runtime, or killed by the system.
        if -done.returncode in _SIGNALS_OF_NO_MEMORY:
            raise _memory(name, request, limits)
        raise SourceError(
            "source-onnx-crash",
            f"{name} crashes onnxruntime or onnx",
            why=f"the process that tried to {_doing(request)} it ended with {done.returncode}",
            hint="export it again with a recent exporter; if it came from elsewhere, distrust it",
        )
    failure: str = json.loads((folder / RESULT).read_text(encoding="utf-8"))["failure"]
    if _NO_MEMORY.search(failure):
        raise _memory(name, request, limits)
    return failure


def _doing(request: Mapping[str, Any]) -> str:
    return {"load": "load", "run": "run on one batch of samples", "fold": "fold"}[request["task"]]


def _memory(name: str, request: Mapping[str, Any], limits: Limits) -> EdgepackError:
    return SourceError(
        "source-onnx-memory",
        f"{name} takes too much memory to {_doing(request)}",
        why=f"it asked for more than {limits.memory / (1 << 20):,.0f} MiB",
        hint="a constant or a function that unfolds without bound? if the model is sound: "
        f"{FACTOR}=4 allows four times as much",
    )


def _factor() -> float:
    try:
        return max(0.0, float(os.environ.get(FACTOR, "1"))) or 1.0
    except ValueError:
        return 1.0


def _available() -> int:
    """Bytes of memory that this machine can still give."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return sys.maxsize
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(match[1]) << 10 if match else sys.maxsize


# The child's side.


def _main(folder: Path) -> None:
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    task = _prepare(request)
    failure = ""
    try:
        _limit(request["memory"])
        task(request, folder)
    except Exception as error:  # noqa: BLE001 - reported to the parent, whatever it is
        failure = f"{type(error).__name__}: {error}"
    (folder / RESULT).write_text(json.dumps({"failure": failure}), encoding="utf-8")


def _prepare(request: Mapping[str, Any]) -> Callable[[Mapping[str, Any], Path], None]:
    """Import what a task needs, so that the limit leaves it out; returns the task."""
    if request["task"] == "fold":
        # onnxsim would import torch for passes that are not used here.
        sys.modules["torch"] = None  # type: ignore[assignment]
        import onnxsim  # noqa: F401

        return _fold
    import onnxruntime  # noqa: F401

    return _load if request["task"] == "load" else _run


def _limit(memory: int) -> None:
    """Limit this process to what it has mapped and so many bytes more."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        return  # Elsewhere than on Linux only the clock limits it.
    mapped = pages * resource.getpagesize() + BYTES_PER_THREAD * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(request: Mapping[str, Any], folder: Path) -> None:
    import onnx.checker

    # Each may refuse the model for another reason, and each is to be tried.
    failures = []
    attempts: tuple[Callable[[str], Any], ...] = (onnx.checker.check_model, _infer, _session)
    for attempt in attempts:
        try:
            attempt(request["model"])
        except Exception as error:  # noqa: BLE001 - as above
            failures.append(f"{type(error).__name__}: {error}")
    if failures:
        raise RuntimeError("\n".join(failures))


def _run(request: Mapping[str, Any], folder: Path) -> None:
    with np.load(folder / INPUTS, allow_pickle=False) as arrays:
        inputs = {name.removeprefix("input-"): arrays[name] for name in arrays.files}
    _session(request["model"]).run(None, inputs)


def _infer(model: str) -> None:
    import onnx
    import onnx.shape_inference

    parsed = onnx.load(model, load_external_data=False)
    # Shapes depend on the values of small tensors alone; onnx would copy the large ones often.
    stated = {value.name for value in parsed.graph.input}
    kept = []
    for tensor in parsed.graph.initializer:
        if tensor.ByteSize() <= LARGE_TENSOR:
            kept.append(tensor)
        elif tensor.name not in stated:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            parsed.graph.input.append(value)
    small = onnx.GraphProto(initializer=kept)
    del parsed.graph.initializer[:]
    parsed.graph.initializer.extend(small.initializer)
    onnx.shape_inference.infer_shapes(parsed, data_prop=True)


def _session(model: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _fold(request: Mapping[str, Any], folder: Path) -> None:
    import onnx
    import onnxsim

    model = onnx.load(request["model"])
    folded, _ = onnxsim.simplify(model, certify=False, **request["options"])
    (folder / "folded.onnx").write_bytes(folded.SerializeToString())


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
