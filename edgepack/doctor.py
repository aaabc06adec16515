"""Check this machine for everything that edgepack uses, with the commands to install it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from itertools import starmap
from pathlib import Path
from typing import TypedDict

from edgepack.cache import OTHER_FOLDER, default_folder
from edgepack.device import CPUS, PREPARE, countable, ready
from edgepack.errors import EdgepackError, suggest_install
from edgepack.runtime.device.machine import describe


class FindingDocument(TypedDict):
    """`Finding` as JSON values."""

    name: str
    present: bool
    required: bool
    detail: str
    hint: str
    partial: bool


@dataclass(frozen=True)
class Finding:
    """Presence of one package, program or resource.

    Attributes:
        name: its name.
        present: True if it is installed or available.
        required: True if every build needs it.
        detail: its version, or its purpose if it is absent.
        hint: the command that installs it.
        partial: True if only a part of it is available.
    """

    name: str
    present: bool
    required: bool
    detail: str
    hint: str = ""
    partial: bool = False

    def to_json(self) -> FindingDocument:
        """Return the finding as JSON values."""
        return {
            "name": self.name,
            "present": self.present,
            "required": self.required,
            "detail": self.detail,
            "hint": self.hint,
            "partial": self.partial,
        }


# Package, the extra that installs it ("" for a dependency of edgepack), and its purpose.
PACKAGES = (
    ("numpy", "", "everything"),
    ("onnx", "", "every build"),
    ("onnxruntime", "", "every build"),
    ("onnxsim", "", "every build"),
    ("torch", "torch", "models that are not ONNX"),
    ("onnxscript", "torch", "export from torch"),
    ("safetensors", "torch", "safetensors checkpoints"),
    ("accelerate", "training", "passes that train, such as distill"),
    ("transformers", "transformers", "Hugging Face folders"),
    ("openvino", "openvino", "a second engine on x86-64 CPUs, where it is faster"),
    ("pillow", "pictures", "folders of pictures"),
    ("tensorrt-rtx-cu13", "tensorrt-rtx", "checking that TensorRT accepts a model"),
)
PROGRAMS = (
    ("unshare", "verifying without a network", "apt-get install util-linux"),
    ("qemu-x86_64", "verifying on other x86-64 CPUs", "apt-get install qemu-user"),
    ("qemu-aarch64", "verifying on ARM CPUs", "apt-get install qemu-user"),
    ("ssh", "verifying on devices", "apt-get install openssh-client"),
)


def _package(name: str, extra: str, purpose: str) -> Finding:
    try:
        return Finding(name, True, not extra, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, not extra, f"for {purpose}", suggest_install(extra))


def _program(name: str, purpose: str, command: str) -> Finding:
    path = shutil.which(name)
    if path:
        return Finding(name, True, False, path)
    return Finding(name, False, False, f"for {purpose}", command)


def _emulators() -> Finding:
    able, fault = _try_cpus(ready)
    detail = "for verifying on emulated CPUs"
    if able:
        detail = f"ready: {', '.join(able)}"
    absent = [cpu for cpu in CPUS if cpu not in able]
    if able and absent:
        detail += f"; not prepared: {', '.join(absent)}"
    hint = ""
    if fault is not None:
        hint = fault.hint
        # qemu may be installed, and yet lack the Python and the libraries of the emulated machine.
        if fault.code == "emulator-missing":
            hint = PREPARE
    return Finding("emulators", fault is None, False, detail, hint, partial=bool(able and absent))


def _instructions() -> Finding:
    able, fault = _try_cpus(countable)
    detail = "for counting instructions on emulated CPUs"
    if able:
        detail = "countable on emulated " + ", ".join(sorted({CPUS[cpu].arch for cpu in able}))
    hint = ""
    if fault is not None:
        hint = fault.hint
    return Finding("instructions", fault is None, False, detail, hint)


def _try_cpus(
    check: Callable[[str], EdgepackError | None],
) -> tuple[list[str], EdgepackError | None]:
    """Return the emulated CPUs that pass a check, and the error of the first that does not."""
    able, first = [], None
    for cpu in CPUS:
        fault = check(cpu)
        if fault is None:
            able.append(cpu)
        elif first is None:
            # One cause, such as an absent qemu, mostly fails all CPUs of an architecture.
            first = fault
    return able, first


def examine() -> list[Finding]:
    """Examine Python, the processor, packages, programs, and the space for the cache."""
    device = describe()
    return [
        Finding("python", sys.version_info >= (3, 10), True, platform.python_version()),
        Finding("processor", True, False, f"{device['cpu']} ({device['arch']})"),
        *starmap(_package, PACKAGES),
        *starmap(_program, PROGRAMS),
        _emulators(),
        _instructions(),
        _cache(default_folder()),
    ]


def _cache(folder: Path) -> Finding:
    """Check that the cache can be written, and measure the free space."""
    ancestor = folder
    # The cache may not exist yet, so its nearest existing parent is checked. `Path.exists` would
    # raise for a parent that may not be searched.
    while not os.path.exists(ancestor):  # noqa: PTH110
        ancestor = ancestor.parent
    if not os.access(ancestor, os.W_OK | os.X_OK):
        return Finding("disk", False, False, f"{folder} cannot be written", OTHER_FOLDER)
    # The exported graphs of a large model take several times its size.
    free = shutil.disk_usage(ancestor).free
    detail = f"{free / 1e9:.1f} GB free for the cache"
    if free > 1 << 30:
        return Finding("disk", True, False, detail)
    return Finding("disk", False, False, detail, "edgepack cache clean")
