"""First evaluation of an untrusted ONNX file, in a child process with limits.

A file of 200 bytes can unfold into millions of nodes, fold a constant of gigabytes, or loop for
ever. So the first expansion or run of a graph takes place in a child. Its memory is limited to its
size at the start plus an allowance, its time by the clock. The allowances grow with the model and
the inputs, so that a large network is not mistaken for a bomb.
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
from typing import Literal, TypedDict

import numpy as np

from edgepack import files
from edgepack.errors import EdgepackError, SourceError
from edgepack.onnx_tools.sessions import Session, create_session
from edgepack.runtime.session.onnx_session import import_engine

# Limits of a task: bytes and seconds at least, and more for each byte of the model (8 times its
# size: the file, the parsed graph, the weights as onnxruntime packs them) and of the inputs
# (activations of a convolutional network take some 100 times the size of its picture). A run of a
# model of 100 MB on 1 MB of inputs may take 5.2 GB and 72 s.
LOAD_BYTES, RUN_BYTES = 1 << 30, 4 << 30
PER_MODEL_BYTE, PER_INPUT_BYTE = 8, 128
SECONDS, SECONDS_PER_GIB, SECONDS_PER_INPUT_MIB = 60.0, 120.0, 1.0
FACTOR = "EDGEPACK_LIMITS"
# Memory that a thread of onnxruntime reserves for its stack and its allocations.
BYTES_PER_THREAD = 16 << 20
# Files in the folder that parent and child share, and the prefix of the arrays in INPUTS.
REQUEST, RESULT, INPUTS, MODEL = "request.json", "result.json", "inputs.npz", "model.onnx"
FOLDED, PREFIX = "folded.onnx", "input-"
# Bytes above which the values of a tensor are not a shape.
LARGE_TENSOR = 1 << 16
_SIGNALS_OF_NO_MEMORY = (signal.SIGABRT, signal.SIGKILL)
# Messages of the libraries when memory runs out; they share no exception.
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|bad_array_new|MemoryError|[Ff]ailed to allocate|[Cc]annot allocate|"
    r"[Oo]ut of memory|length_error|Unable to allocate|alloc failed"
)


@dataclass(frozen=True)
class Limits:
    """Limits of a child process.

    Attributes:
        memory: bytes beyond those mapped before the task begins.
        seconds: wall-clock time.
    """

    memory: int
    seconds: float

    @classmethod
    def of(cls, base: int, model_bytes: int, input_bytes: int = 0) -> Limits:
        """Compute the limits for a model and its inputs, up to the available memory."""
        factor = _factor()
        memory = base + PER_MODEL_BYTE * model_bytes + PER_INPUT_BYTE * input_bytes
        seconds = SECONDS + SECONDS_PER_GIB * model_bytes / (1 << 30)
        seconds += SECONDS_PER_INPUT_MIB * input_bytes / (1 << 20)
        return cls(min(int(factor * memory), _available()), factor * seconds)


def load(name: str, model: Path | str | bytes, model_bytes: int) -> None:
    """Check a model, infer its shapes, and load it, in a child.

    Models that onnx or onnxruntime merely reject pass here, because they are rejected again later.

    Args:
        name: name of the model in messages.
        model: an ONNX file, or the serialised model.
        model_bytes: size of the model with its external data.

    Raises:
        SourceError: source-onnx-memory, source-onnx-time, source-onnx-crash.
    """
    with files.temporary_folder() as folder:
        _attempt(folder, "load", model, Limits.of(LOAD_BYTES, model_bytes), name)


def run(
    name: str, model: Path | str | bytes, model_bytes: int, inputs: Mapping[str, np.ndarray]
) -> None:
    """Run a model once in a child. Raises the errors of `load`."""
    # An input may be called "file", as the first parameter of `savez` is: hence the prefix.
    arrays, size = {}, 0
    for key, array in inputs.items():
        arrays[f"{PREFIX}{key}"] = array
        size += array.nbytes
    with files.temporary_folder() as folder:
        with (folder / INPUTS).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        _attempt(folder, "run", model, Limits.of(RUN_BYTES, model_bytes, size), name)


def _model_path(model: Path | str | bytes, folder: Path) -> str:
    """Return the path of a model, after writing a serialised one into `folder`."""
    if not isinstance(model, bytes):
        return str(Path(model).resolve())
    (folder / MODEL).write_bytes(model)
    return str(folder / MODEL)


def fold(model: bytes, options: Mapping[str, object]) -> bytes:
    """Simplify a model with onnxsim in a child.

    Args:
        model: the serialised model.
        options: options of `onnxsim.simplify`.

    Raises:
        SourceError: the errors of `load`.
        RuntimeError: with onnxsim's message, if it fails.
    """
    with files.temporary_folder() as folder:
        limits = Limits.of(LOAD_BYTES, len(model))
        failure = _attempt(folder, "fold", model, limits, "the graph", options)
        if failure:
            raise RuntimeError(failure)
        return (folder / FOLDED).read_bytes()


Task = Literal["load", "run", "fold"]
_ACTIONS = {"load": "load", "run": "run on one batch of samples", "fold": "fold"}


class Request(TypedDict):
    """Request to the child, in REQUEST.

    Attributes:
        task: the task.
        model: path of the ONNX file.
        options: options of `onnxsim.simplify`, for "fold".
        memory: bytes that the task may take.
    """

    task: Task
    model: str
    options: Mapping[str, object]
    memory: int


def _attempt(
    folder: Path,
    task: Task,
    model: Path | str | bytes,
    limits: Limits,
    name: str,
    options: Mapping[str, object] | None = None,
) -> str:
    """Run a task in a child and return the reason why a library rejected the model, or ""."""
    request: Request = {
        "task": task,
        "model": _model_path(model, folder),
        "options": dict(options or {}),
        "memory": limits.memory,
    }
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # Each arena reserves 64 MiB, which would count towards the limit.
        "MALLOC_ARENA_MAX": "2",
    }
    try:
        result = subprocess.run(
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
            f"{name} takes too long to {_ACTIONS[task]}",
            why=f"it was still running after {limits.seconds:,.0f} s",
            hint="check the model for an endless loop; if it is sound and the machine slow, "
            f"{FACTOR}=4 allows four times as much",
        ) from error
    # A child that was killed or crashed leaves no result.
    if not (folder / RESULT).is_file():
        # Without memory the C++ runtime aborts the process, or the system kills it.
        if -result.returncode in _SIGNALS_OF_NO_MEMORY:
            raise _memory(name, task, limits)
        raise SourceError(
            "source-onnx-crash",
            f"{name} crashes onnxruntime or onnx",
            why=f"the process to {_ACTIONS[task]} it ended with exit status {result.returncode}",
            hint="export it again with a recent exporter; do not trust a file of unknown origin",
        )
    failure: str = json.loads((folder / RESULT).read_text(encoding="utf-8"))["failure"]
    if _NO_MEMORY.search(failure):
        raise _memory(name, task, limits)
    return failure


def _memory(name: str, task: Task, limits: Limits) -> EdgepackError:
    return SourceError(
        "source-onnx-memory",
        f"{name} takes too much memory to {_ACTIONS[task]}",
        why=f"it needs more than {limits.memory / (1 << 20):,.0f} MiB",
        hint="check the model for a constant or a function that unfolds without bound; if it is "
        f"sound, {FACTOR}=4 allows four times as much",
    )


def _factor() -> float:
    try:
        # A factor of 0 would forbid everything, so it counts as 1.
        return max(0.0, float(os.environ.get(FACTOR, "1"))) or 1.0
    except ValueError:
        return 1.0


def _available() -> int:
    """Return the available memory of this machine in bytes."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return sys.maxsize
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if match is None:
        return sys.maxsize
    return int(match[1]) << 10


# The child's side.


def _main(folder: Path) -> None:
    request: Request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    task = _prepare(request)
    failure = ""
    try:
        _limit(request["memory"])
        task(request, folder)
    except Exception as error:  # noqa: BLE001 - reported to the parent, whatever it is
        failure = f"{type(error).__name__}: {error}"
    (folder / RESULT).write_text(json.dumps({"failure": failure}), encoding="utf-8")


def _prepare(request: Request) -> Callable[[Request, Path], None]:
    """Import the libraries of a task before the limit applies, and return the task."""
    if request["task"] == "fold":
        # onnxsim imports torch, if there is one, for passes that are not used here.
        sys.modules["torch"] = None  # type: ignore[assignment]
        import onnxsim  # noqa: F401

        return _fold
    import_engine()
    return _load if request["task"] == "load" else _run


def _limit(memory: int) -> None:
    """Limit this process to its current memory plus some bytes."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        return  # Only Linux has this; elsewhere only the time is limited.
    mapped = pages * resource.getpagesize() + BYTES_PER_THREAD * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + memory
    # -1 stands for no limit.
    if hard >= 0:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    # No core dump, which could be as large as the limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(request: Request, folder: Path) -> None:
    import onnx.checker

    # Each may fail in another way, so all are tried even after a failure.
    failures = []
    attempts: tuple[Callable[[str], object], ...] = (onnx.checker.check_model, _infer, _session)
    for attempt in attempts:
        try:
            attempt(request["model"])
        except Exception as error:  # noqa: BLE001 - as above
            failures.append(f"{type(error).__name__}: {error}")
    if failures:
        raise RuntimeError("\n".join(failures))


def _run(request: Request, folder: Path) -> None:
    with np.load(folder / INPUTS, allow_pickle=False) as arrays:
        inputs = {name.removeprefix(PREFIX): arrays[name] for name in arrays.files}
    _session(request["model"]).run(None, inputs)


def _infer(model: str) -> None:
    import onnx
    import onnx.shape_inference

    parsed = onnx.load(model, load_external_data=False)
    # Shapes depend on the values of small tensors only, and onnx would copy large ones many times.
    # So these become inputs: a weight of (512, 512, 3, 3) keeps its shape but not its values.
    input_names = {value.name for value in parsed.graph.input}
    small_tensors = []
    for tensor in parsed.graph.initializer:
        if tensor.ByteSize() <= LARGE_TENSOR:
            small_tensors.append(tensor)
        elif tensor.name not in input_names:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            parsed.graph.input.append(value)
    copies = onnx.GraphProto(initializer=small_tensors)
    del parsed.graph.initializer[:]
    parsed.graph.initializer.extend(copies.initializer)
    onnx.shape_inference.infer_shapes(parsed, data_prop=True)


def _session(model: str) -> Session:
    return create_session(model, optimization="basic")


def _fold(request: Request, folder: Path) -> None:
    import onnx
    import onnxsim

    model = onnx.load(request["model"])
    folded, _ = onnxsim.simplify(model, **request["options"])
    (folder / FOLDED).write_bytes(folded.SerializeToString())


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
