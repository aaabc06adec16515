"""The device that accelerate picks, the precision on it, and the same bits each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgepack.chain.training import processes
from edgepack.chain.training.options import TrainingOptions
from edgepack.errors import ChainError, missing_package


def make_accelerator(options: TrainingOptions) -> Any:
    """accelerate's Accelerator for the device that it picks.

    Raises HostError package-missing, ChainError training-precision.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise missing_package("accelerate", "training", "Training") from error
    processes.state()
    # It keeps the first precision of a process for good, and two steps may ask for two.
    AcceleratorState._reset_state()
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = _precision(options.precision)
    return Accelerator(
        cpu=processes.on_cpu(),
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[unused],
    )


def _precision(asked: str) -> str:
    import torch

    if asked == "fp16" and processes.on_cpu():
        raise ChainError(
            "training-precision",
            "fp16 cannot be trained on a CPU",
            why="its gradients vanish without a GPU's loss scaling kernels",
            hint="precision=bf16, or fp32",
        )
    if asked != "auto" or processes.on_cpu():
        return "fp32" if asked == "auto" else asked
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp16"


@contextmanager
def deterministic() -> Iterator[None]:
    """The same bits each time, as far as the device's kernels can."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    # Read when cuBLAS starts; without it torch warns that its sums are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


@contextmanager
def recomputing(module: Any) -> Iterator[None]:
    """Activations are computed a second time in place of being kept, where the model can.

    Raises ChainError training-no-checkpointing where it cannot.
    """
    part = next(
        (part for part in module.modules() if hasattr(part, "gradient_checkpointing_enable")), None
    )
    if part is None or not getattr(part, "supports_gradient_checkpointing", True):
        raise ChainError(
            "training-no-checkpointing",
            "the network cannot do without its activations",
            why=f"{type(module).__name__} has no gradient_checkpointing_enable()",
            hint="gradient_checkpointing=false; accumulate=4 saves memory too",
        )
    part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        part.gradient_checkpointing_disable()
