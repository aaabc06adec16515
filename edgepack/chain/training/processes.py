"""The processes of one training: one, or as many as `accelerate launch` or `torchrun` started.

Every process runs the build up to its last pass on the module; the main one alone writes, prints
and goes on after that. What the others would compute they wait for, or are told.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from edgepack.errors import ChainError, missing_package

# One process may export and measure for long while the others wait for it.
PATIENCE = timedelta(hours=12)


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def on_cpu() -> bool:
    """Whether training runs on the CPU: where there is nothing else, or as accelerate was told."""
    import torch

    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return told or not torch.accelerator.is_available()


def environment() -> dict[str, Any]:
    """What the result of a training depends on besides its inputs: processes, device, threads.

    The same inputs give the same bits only on as many processes, on the same device and, where
    that is the CPU, on as many threads of each: sums are split between them.
    """
    import torch

    cuda = not on_cpu() and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else "cpu" if on_cpu() else "accelerator"
    threads = {"threads": torch.get_num_threads()} if on_cpu() else {}
    return {"processes": count(), "device": name, **threads}


def state() -> Any:
    """accelerate's state; the first call of each process joins it with the others.

    Raises HostError package-missing.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise missing_package("accelerate", "training", "Training") from error
    # accelerate takes several processes for one where there is no GPU, unless it is told so.
    if count() == 1:
        return PartialState(cpu=on_cpu())
    joined = PartialState(cpu=on_cpu(), timeout=PATIENCE)
    # Once is enough, and taking it back first keeps it so.
    atexit.unregister(leave)
    atexit.register(leave)
    return joined


def leave() -> None:
    """Part from the other processes.

    A group still open when Python ends is taken down after its own threads are gone, and now and
    then aborts the process.
    """
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def in_turn() -> Iterator[None]:
    """The main process first, then the others: on one machine they find its work in the cache."""
    if count() == 1:
        yield
        return
    with together(), state().main_process_first():
        yield


def broadcast(value: Any) -> Any:
    """The main process's value, in every process. It must be one that pickle takes."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    with together():
        state()
        return broadcast_object_list([value])[0]


@contextmanager
def together() -> Iterator[None]:
    """Work that every process must take part in; that one was lost is an error of its own.

    Raises ChainError process-lost.
    """
    from torch import distributed

    try:
        yield
    except (distributed.DistBackendError, distributed.DistNetworkError, RuntimeError) as error:
        lost = ("Connection closed by peer", "Connection reset by peer", "Timed out", "Socket")
        if count() == 1 or not any(word in str(error) for word in lost):
            raise
        raise ChainError(
            "process-lost",
            "another process of this training is gone",
            why=str(error).strip().splitlines()[0],
            hint="its own message tells why; started again, training goes on where it was",
        ) from error
