"""Import the host's torch late, and refuse an environment that disables its safety."""

from __future__ import annotations

import os
from typing import Any

from edgepack.errors import SourceError, missing_package


def check_environment() -> None:
    """Refuse an environment that disables torch's safety.

    Raises SourceError: source-unsafe-environment if a variable lets every `torch.load` run code,
    including those inside torch's own loaders.
    """
    unsafe = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    if unsafe:
        raise SourceError(
            "source-unsafe-environment",
            "the environment lets torch run code from every file that it loads",
            why=f"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD={unsafe} is set",
            hint="unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD; --trust-pickle trusts one file",
        )


def import_torch(purpose: str) -> Any:
    """Check the environment, and return the torch module.

    Args:
        purpose: the feature that needs torch, as the start of a sentence.

    Raises:
        HostError: package-missing.
        SourceError: as `check_environment`.
    """
    check_environment()
    # torch reads it once, at its import; its warnings would stand between the lines of a build.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch", purpose) from error
    return torch
