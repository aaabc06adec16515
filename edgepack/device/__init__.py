"""Devices that run a bundle, behind one interface."""

from edgepack.device.cpus import CPUS
from edgepack.device.device import (
    Device,
    Finished,
    ask,
    compare_latency,
    require_fidelity,
    verify_bundle,
)
from edgepack.device.emulated import Emulated, prepare, ready, suggest_emulation
from edgepack.device.instructions import count, countable
from edgepack.device.local import Local
from edgepack.device.matrix import verify
from edgepack.device.ssh import Ssh
from edgepack.device.sysroot import PREPARE

__all__ = [
    "CPUS",
    "PREPARE",
    "Device",
    "Emulated",
    "Finished",
    "Local",
    "Ssh",
    "ask",
    "compare_latency",
    "count",
    "countable",
    "prepare",
    "ready",
    "require_fidelity",
    "suggest_emulation",
    "verify",
    "verify_bundle",
]
