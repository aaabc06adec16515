"""Processes of a training: one, or as many as `accelerate launch` or `torchrun` started.

Every process runs the build up to its last pass on the module; only the main one writes, prints and
continues after that. The others wait for its results, or receive them.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from edgepack.errors import ChainError, missing_package

if TYPE_CHECKING:
    from accelerate import PartialState

Value = TypeVar("Value")

# The main process may export and measure for hours while the others wait.
PATIENCE = timedelta(hours=12)


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return True in the process that writes and prints."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def on_cpu() -> bool:
    """Return True if training runs on the CPU: without an accelerator, or by ACCELERATE_USE_CPU."""
    import torch

    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return forced or not torch.accelerator.is_available()


def environment() -> dict[str, object]:
    """Return the settings besides its inputs that the result of a training depends on.

    The same inputs give the same bits only with the same number of processes, on the same device
    and, on the CPU, with the same number of threads, since sums are divided among them.
    """
    import torch

    if on_cpu():
        return {"processes": count(), "device": "cpu", "threads": torch.get_num_threads()}
    # Kernels differ between models of GPU, and so do the last bits.
    name = "accelerator"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {"processes": count(), "device": name}


def state() -> PartialState:
    """Return accelerate's state; the first call of each process joins the process group.

    Raises HostError package-missing.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise missing_package("accelerate", "training", "Training") from error
    # Without a GPU, accelerate recognizes several processes only with cpu=True.
    if count() == 1:
        return PartialState(cpu=on_cpu())
    group = PartialState(cpu=on_cpu(), timeout=PATIENCE)
    # Unregister first, so that repeated calls register it only once.
    atexit.unregister(leave)
    atexit.register(leave)
    return group


def leave() -> None:
    """Leave the process group.

    Python would destroy an open group at exit after the group's own threads have ended, which
    sometimes aborts the process.
    """
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def in_turn() -> Iterator[None]:
    """Run the main process first, then the others, which find its results in the cache."""
    if count() == 1:
        yield
        return
    with together(), state().main_process_first():
        yield


def broadcast(value: Value) -> Value:
    """Return the main process's value in every process. It must be picklable."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    with together():
        state()
        result: Value = broadcast_object_list([value])[0]
    return result


@contextmanager
def together() -> Iterator[None]:
    """Run a collective operation, and recognize the loss of another process.

    Raises ChainError process-lost.
    """
    from torch import distributed

    try:
        yield
    except (distributed.DistBackendError, distributed.DistNetworkError, RuntimeError) as error:
        # gloo raises a plain RuntimeError for a lost peer; only its text identifies it.
        lost = ("Connection closed by peer", "Connection reset by peer", "Timed out", "Socket")
        if count() == 1 or not any(word in str(error) for word in lost):
            raise
        raise ChainError(
            "process-lost",
            "another process of this training has ended",
            why=str(error).strip().splitlines()[0],
            hint="see the error message of that process; a restarted training resumes",
        ) from error
