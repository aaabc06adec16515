"""Which NVIDIA GPU is here, found without any dependency and without risk to this process.

TensorRT's runtimes have been seen to end the process with a segmentation fault where there is no
GPU, and a driver that hangs takes its caller along. So the looking is done in a process of its
own; that it crashed or came to no end is an answer like any other: no usable GPU.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import Any, Dict, List, Optional

from ..origin import origin

# The first use of a GPU loads its driver, which takes seconds on a small board.
TIMEOUT_SECONDS = 60.0
L4T_RELEASE = "/etc/nv_tegra_release"
BOARD = "/proc/device-tree/model"

# What native libraries print into the same pipe has no such beginning.
_MARK = "edgepack-gpu "
_CHILD = (
    "import importlib, json, sys\n"
    "asked = json.loads(sys.stdin.read())\n"
    "sys.path[:] = asked['path']\n"
    "importlib.import_module(asked['module']).report(asked['tensorrt'])\n"
)
_NOTHING: Dict[str, Any] = {
    "gpu": None,
    "gpu_why": "",
    "compute_capability": None,
    "multiprocessors": None,
    "gpu_memory_bytes": None,
    "cuda_driver": None,
}


def probe(tensorrt: bool, timeout: float = TIMEOUT_SECONDS) -> Dict[str, Any]:
    """GPU, driver, board and TensorRT of this device, as flat JSON values.

    Args:
        tensorrt: whether to look for TensorRT too, whose import takes its time.
        timeout: in seconds.

    Returns `gpu` (its name, None where there is no usable one, which `gpu_why` explains),
    `compute_capability` ("8.7"), `multiprocessors`, `gpu_memory_bytes`, `cuda_driver` (the newest
    CUDA that the driver runs, "12.6"), `tensorrt` (its version, or None with `tensorrt_why`), and
    `l4t` and `board` of a Jetson, else None.
    """
    asked = {"path": _path(), "module": __name__, "tensorrt": tensorrt}
    out, err, ended = b"", b"", "Python's own path is not known, so nothing could look for one"
    if sys.executable:
        # Without site: what it would add to the path is in the path that is handed on.
        command = [sys.executable, "-I", "-S", "-B", "-c", _CHILD]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(asked).encode("ascii"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=timeout,
            )
            out, err, ended = done.stdout, done.stderr, _ended(done.returncode)
        except subprocess.TimeoutExpired as error:
            out, ended = error.stdout or b"", "looking took longer than {:g} s".format(timeout)
        except OSError as error:
            ended = "no process could be started to look: {}".format(error.strerror or error)
    return {**_facts(out, err, ended), **_jetson()}


def _path() -> List[str]:
    """What this process imports from, this loader's own place first."""
    return [origin(), *(entry for entry in sys.path if isinstance(entry, str))]


def _ended(status: int) -> str:
    if status >= 0:
        return "exit status {}".format(status) if status else ""
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "an unknown signal"
    return "looking ended with signal {} ({})".format(-status, name)


def _facts(out: bytes, err: bytes, ended: str) -> Dict[str, Any]:
    """What the other process told until it ended."""
    facts: Dict[str, Any] = {}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith(_MARK):
            facts.update(json.loads(line[len(_MARK) :]))
    last = err.decode("utf-8", "replace").strip()[-400:]
    why = "\n".join(filter(None, (ended, last))) or "it told nothing"
    if "gpu" not in facts:
        return {**_NOTHING, "gpu_why": why, "tensorrt": None, "tensorrt_why": "no GPU"}
    if "tensorrt" not in facts:
        facts.update(tensorrt=None, tensorrt_why=why if facts["gpu"] else "no GPU")
    return facts


def _jetson() -> Dict[str, Optional[str]]:
    release = re.search(r"R([0-9]+).*REVISION: *([0-9.]+)", _text(L4T_RELEASE))
    return {
        "l4t": ".".join(release.groups()) if release else None,
        # Of the Orin family CUDA says "Orin", from the smallest to the largest.
        "board": _text(BOARD).strip("\0\n ") or None if release else None,
    }


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def report(tensorrt: bool) -> None:
    """What the other process does: print every fact as soon as it is known."""
    found = _driver()
    _tell(found)
    if tensorrt and found["gpu"] is not None:
        _tell(_tensorrt())


def _tell(facts: Dict[str, Any]) -> None:
    print("\n" + _MARK + json.dumps(facts), flush=True)


def _driver() -> Dict[str, Any]:
    """The first GPU, as CUDA's driver (libcuda) tells of it."""
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {**_NOTHING, "gpu_why": "NVIDIA's driver is not installed: {}".format(error)}
    number, device, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)

    def ask(function: str, *arguments: Any) -> None:
        status = getattr(cuda, function)(*arguments)
        if status:
            told = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(told))
            reason = (told.value or b"").decode("utf-8", "replace")
            raise OSError("{}: error {} {}".format(function, status, reason).strip())

    def attribute(which: int) -> int:
        ask("cuDeviceGetAttribute", ctypes.byref(number), which, device)
        return number.value

    try:
        ask("cuInit", 0)
        ask("cuDriverGetVersion", ctypes.byref(number))
        driver = number.value
        ask("cuDeviceGetCount", ctypes.byref(number))
        if number.value == 0:
            return {**_NOTHING, "gpu_why": "the driver sees no GPU"}
        ask("cuDeviceGet", ctypes.byref(device), 0)
        ask("cuDeviceGetName", name, len(name), device)
        ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        # Numbers of CUdevice_attribute: 75, 76 compute capability, 16 multiprocessors.
        capability = "{}.{}".format(attribute(75), attribute(76))
        multiprocessors = attribute(16)
    except (OSError, AttributeError) as error:
        return {**_NOTHING, "gpu_why": str(error)}
    return {
        "gpu": name.value.decode("utf-8", "replace"),
        "gpu_why": "",
        "compute_capability": capability,
        "multiprocessors": multiprocessors,
        "gpu_memory_bytes": memory.value,
        "cuda_driver": "{}.{}".format(driver // 1000, driver % 1000 // 10),
    }


def _tensorrt() -> Dict[str, Optional[str]]:
    """TensorRT's version, after it showed that it starts on this GPU."""
    try:
        import tensorrt

        # A runtime that cannot use the GPU ends this process here, and not the user's.
        tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    except Exception as error:  # noqa: BLE001  An extension module may raise anything
        return {"tensorrt": None, "tensorrt_why": "{}: {}".format(type(error).__name__, error)}
    return {"tensorrt": str(tensorrt.__version__), "tensorrt_why": ""}
