"""Probe for the NVIDIA GPU, without dependencies and without risk to this process.

TensorRT's runtimes have been seen to crash on machines without a GPU, and a driver that hangs
blocks its caller. The probe therefore runs in a separate process; if that crashes or times out, the
answer is: no usable GPU.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, List

from ..origin import origin

if TYPE_CHECKING:
    from ..documents import GpuDocument

# The first use of a GPU loads its driver, which takes seconds on a small board.
TIMEOUT_SECONDS = 60.0
L4T_RELEASE = "/etc/nv_tegra_release"
BOARD = "/proc/device-tree/model"

# Prefix of the probe's own lines, since native libraries print into the same pipe.
_MARK = "edgepack-gpu "
_CHILD = (
    "import importlib, json, sys\n"
    "request = json.loads(sys.stdin.read())\n"
    "sys.path[:] = request['path']\n"
    "importlib.import_module(request['module']).report(request['tensorrt'])\n"
)
_NOTHING: GpuDocument = {
    "gpu": None,
    "gpu_why": "",
    "compute_capability": None,
    "multiprocessors": None,
    "gpu_memory_bytes": None,
    "cuda_driver": None,
}


def probe(tensorrt: bool, timeout: float = TIMEOUT_SECONDS) -> GpuDocument:
    """Return GPU, driver, board and TensorRT of this device, as flat JSON values.

    Args:
        tensorrt: probe TensorRT too, whose import is slow.
        timeout: in seconds.

    Returns `gpu` (its name, or None with the reason in `gpu_why`), `compute_capability` ("8.7"),
    `multiprocessors`, `gpu_memory_bytes`, `cuda_driver` (the newest CUDA that the driver runs,
    "12.6"), `tensorrt` (its version, or None with `tensorrt_why`), and `l4t` and `board` of a
    Jetson, else None.
    """
    request = {"path": _path(), "module": __name__, "tensorrt": tensorrt}
    out, err, ended = b"", b"", "the path of the Python executable is unknown"
    if sys.executable:
        # -S: the request already carries everything that `site` would add to the path.
        command = [sys.executable, "-I", "-S", "-B", "-c", _CHILD]
        try:
            process = subprocess.run(
                command,
                input=json.dumps(request).encode("ascii"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=timeout,
            )
            out, err, ended = process.stdout, process.stderr, _describe_end(process.returncode)
        except subprocess.TimeoutExpired as error:
            out, ended = error.stdout or b"", f"the probe took longer than {timeout:g} s"
        except OSError as error:
            ended = f"the probe could not be started: {error.strerror or error}"
    return {**_facts(out, err, ended), **_jetson()}


def _path() -> List[str]:
    """Return the import path of this process, with this loader first."""
    return [origin(), *(entry for entry in sys.path if isinstance(entry, str))]


def _describe_end(status: int) -> str:
    """Return the exit status or signal of the probe in words; empty for success."""
    if status == 0:
        return ""
    if status > 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "an unknown signal"
    return f"the probe ended with signal {-status} ({name})"


def _facts(out: bytes, err: bytes, ended: str) -> GpuDocument:
    """Collect the facts that the probe printed before it ended."""
    facts: GpuDocument = {}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith(_MARK):
            facts.update(json.loads(line[len(_MARK) :]))
    # For example a line `edgepack-gpu {"gpu": "Orin", ...}` and then a crash in TensorRT: the GPU
    # is usable, and the signal is the reason against TensorRT.
    last = err.decode("utf-8", "replace").strip()[-400:]
    why = "\n".join(filter(None, (ended, last))) or "the probe printed nothing"
    if "gpu" not in facts:
        return {**_NOTHING, "gpu_why": why, "tensorrt": None, "tensorrt_why": "no GPU"}
    if "tensorrt" not in facts:
        facts["tensorrt"], facts["tensorrt_why"] = None, "no GPU"
        if facts["gpu"]:
            facts["tensorrt_why"] = why
    return facts


def _jetson() -> GpuDocument:
    # "# R36 (release), REVISION: 4.3, GCID: ..." is L4T 36.4.3.
    release = re.search(r"R([0-9]+).*REVISION: *([0-9.]+)", _text(L4T_RELEASE))
    if release is None:
        return {"l4t": None, "board": None}
    # CUDA reports the same GPU name, "Orin", for every board of that family.
    return {"l4t": ".".join(release.groups()), "board": _text(BOARD).strip("\0\n ") or None}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def report(tensorrt: bool) -> None:
    """Print every fact as soon as it is known; runs in the probe's process."""
    facts = _driver()
    _print_facts(facts)
    if tensorrt and facts["gpu"] is not None:
        _print_facts(_tensorrt())


def _print_facts(facts: GpuDocument) -> None:
    print("\n" + _MARK + json.dumps(facts), flush=True)


def _driver() -> GpuDocument:
    """Return the facts on the first GPU from CUDA's driver (libcuda)."""
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {**_NOTHING, "gpu_why": f"NVIDIA's driver is not installed: {error}"}
    # Output parameters of the calls below; `number` is reused.
    number, device, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)

    def call(function: str, *arguments: object) -> None:
        status = getattr(cuda, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(text))
            reason = (text.value or b"").decode("utf-8", "replace")
            raise OSError(f"{function}: error {status} {reason}".strip())

    def attribute(identifier: int) -> int:
        call("cuDeviceGetAttribute", ctypes.byref(number), identifier, device)
        return number.value

    try:
        call("cuInit", 0)
        call("cuDriverGetVersion", ctypes.byref(number))
        driver = number.value
        call("cuDeviceGetCount", ctypes.byref(number))
        if number.value == 0:
            return {**_NOTHING, "gpu_why": "the driver sees no GPU"}
        call("cuDeviceGet", ctypes.byref(device), 0)
        call("cuDeviceGetName", name, len(name), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        # CUdevice_attribute: 75 and 76 are the compute capability, 16 the multiprocessors.
        capability = f"{attribute(75)}.{attribute(76)}"
        multiprocessors = attribute(16)
    except (OSError, AttributeError) as error:
        return {**_NOTHING, "gpu_why": str(error)}
    return {
        "gpu": name.value.decode("utf-8", "replace"),
        "gpu_why": "",
        "compute_capability": capability,
        "multiprocessors": multiprocessors,
        "gpu_memory_bytes": memory.value,
        # 12060 is CUDA 12.6.
        "cuda_driver": f"{driver // 1000}.{driver % 1000 // 10}",
    }


def _tensorrt() -> GpuDocument:
    """Return TensorRT's version once it has started on this GPU."""
    try:
        import tensorrt

        # A runtime that cannot use the GPU may crash here: the probe dies, not the user's
        # process.
        tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    except Exception as error:  # noqa: BLE001  An extension module may raise anything.
        return {"tensorrt": None, "tensorrt_why": f"{type(error).__name__}: {error}"}
    return {"tensorrt": str(tensorrt.__version__), "tensorrt_why": ""}
