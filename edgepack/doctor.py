"""What this machine has, what it lacks, and which command brings it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgepack.cache import OTHER_FOLDER, default_folder
from edgepack.device import CPUS, PREPARE, countable, ready
from edgepack.runtime.device.machine import describe


@dataclass(frozen=True)
class Finding:
    """One thing that edgepack uses.

    Attributes:
        name: of it.
        present: whether it is here.
        required: whether every build needs it.
        detail: its version, or what needs it.
        hint: the command that brings it.
    """

    name: str
    present: bool
    required: bool
    detail: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


# Package, the extra that brings it ("" for what edgepack itself requires), what needs it.
PACKAGES = (
    ("numpy", "", "everything"),
    ("onnx", "", "every build"),
    ("onnxruntime", "", "every build"),
    ("onnxsim", "", "every build"),
    ("torch", "torch", "models that are not ONNX"),
    ("onnxscript", "torch", "export from torch"),
    ("safetensors", "torch", "safetensors checkpoints"),
    ("accelerate", "training", "passes that train: distill"),
    ("transformers", "transformers", "Hugging Face folders"),
    ("pillow", "pictures", "folders of pictures"),
    ("tensorrt-rtx-cu13", "tensorrt-rtx", "proving that TensorRT takes a model"),
)
PROGRAMS = (
    ("unshare", "proving without a network", "apt-get install util-linux"),
    ("qemu-x86_64", "proving on other x86-64 CPUs", "apt-get install qemu-user"),
    ("qemu-aarch64", "proving on ARM CPUs", "apt-get install qemu-user"),
    ("ssh", "proving on devices", "apt-get install openssh-client"),
)


def _package(name: str, extra: str, purpose: str) -> Finding:
    wanted = f"edgepack[{extra}]" if extra else "edgepack"
    try:
        return Finding(name, True, not extra, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, not extra, f"for {purpose}", f"pip install '{wanted}'")


def _program(name: str, purpose: str, command: str) -> Finding:
    found = shutil.which(name)
    if found:
        return Finding(name, True, False, found)
    return Finding(name, False, False, f"for {purpose}", command)


def _emulators() -> Finding:
    faults = {cpu: ready(cpu) for cpu in CPUS}
    able = [cpu for cpu, fault in faults.items() if fault is None]
    first = next(filter(None, faults.values()), None)
    unprepared = first is not None and first.code == "emulator-missing"
    return Finding(
        "emulators",
        first is None,
        False,
        ", ".join(able) if able else "for proving on CPUs that are not here",
        "" if first is None else PREPARE if unprepared else first.hint,
    )


def _instructions() -> Finding:
    faults = {cpu: countable(cpu) for cpu in CPUS}
    able = {CPUS[cpu].arch for cpu, fault in faults.items() if fault is None}
    first = next(filter(None, faults.values()), None)
    return Finding(
        "instructions",
        first is None,
        False,
        "countable on emulated " + ", ".join(sorted(able))
        if able
        else "for counting on CPUs that are not here",
        "" if first is None else first.hint,
    )


def examine() -> list[Finding]:
    """Look at Python, the processor, packages, programs, and the space for the cache."""
    device = describe()
    return [
        Finding("python", sys.version_info >= (3, 10), True, platform.python_version()),
        Finding("processor", True, False, f"{device['cpu']} ({device['arch']})"),
        *(_package(*row) for row in PACKAGES),
        *(_program(*row) for row in PROGRAMS),
        _emulators(),
        _instructions(),
        _cache(default_folder()),
    ]


def _cache(folder: Path) -> Finding:
    """Return whether the cache can be written, and the space left for it."""
    above = folder
    # Not `Path.exists`, which raises where a folder above may not be looked into.
    while not os.path.exists(above):  # noqa: PTH110
        above = above.parent
    if not os.access(above, os.W_OK | os.X_OK):
        return Finding("disk", False, False, f"{folder} cannot be written", OTHER_FOLDER)
    free = shutil.disk_usage(above).free
    detail = f"{free / 1e9:.1f} GB free for the cache"
    if free > 1 << 30:
        return Finding("disk", True, False, detail)
    return Finding("disk", False, False, detail, "edgepack cache clean")
