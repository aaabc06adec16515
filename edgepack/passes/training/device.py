"""Device and precision of a training, and its reproducibility."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgepack.errors import ChainError, missing_package
from edgepack.passes.training import processes
from edgepack.passes.training.options import TrainingOptions

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """Create accelerate's Accelerator for the device that it selects.

    Raises HostError package-missing, ChainError training-precision.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise missing_package("accelerate", "training", "Training") from error
    processes.state()
    # The state stores the first precision of a process, and a chain may train in two.
    AcceleratorState._reset_state()
    # A network may not use all of its parameters in every call, as with layer dropout.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # accelerate's name for fp32 is "no".
    precision = _resolve_precision(options.precision)
    return Accelerator(
        cpu=processes.on_cpu(),
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[unused],
    )


def _resolve_precision(precision: str) -> str:
    """Resolve "auto" to the precision of the device. Raises ChainError training-precision."""
    import torch

    if precision == "fp16" and processes.on_cpu():
        raise ChainError(
            "training-precision",
            "fp16 cannot be trained on a CPU",
            why="its gradients vanish without a GPU's loss scaling kernels",
            hint="precision=bf16, or fp32",
        )
    if precision != "auto":
        return precision
    if processes.on_cpu():
        return "fp32"
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return "fp16"


@contextmanager
def deterministic() -> Iterator[None]:
    """Make results reproducible bit for bit, as far as the device's kernels allow."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS reads this when it starts; without it torch warns that sums are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Recompute activations in the backward pass instead of storing them.

    Raises ChainError training-no-checkpointing if the network does not support it.
    """
    part, prefix = _find_checkpointing_part(module)
    if part is None or not getattr(part, "supports_gradient_checkpointing", True):
        raise ChainError(
            "training-no-checkpointing",
            "the network does not support gradient checkpointing",
            why=f"{type(module).__name__} has no gradient_checkpointing_enable()",
            hint="gradient_checkpointing=false; accumulate=4 saves memory too",
        )
    # For example activation_checkpointing_enable(activation_checkpointing_kwargs={...}).
    enable = getattr(part, f"{prefix}_checkpointing_enable")
    enable(**{f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        getattr(part, f"{prefix}_checkpointing_disable")()


def _find_checkpointing_part(module: nn.Module) -> tuple[nn.Module | None, str]:
    """Find the part of a network that can recompute, and the prefix of its methods' names.

    transformers has renamed `gradient_checkpointing_enable`, and warns where the old name is used.
    """
    for part in module.modules():
        for prefix in ("activation", "gradient"):
            if hasattr(part, f"{prefix}_checkpointing_enable"):
                return part, prefix
    return None, ""
