"""Import the host's torch late, and refuse an environment that disables its safety."""

from __future__ import annotations

import os
from typing import Any

from edgepack.errors import SourceError, missing_package

# Turns that a thread of torch waits for the others before it sleeps. As fast as the 300,000 of
# OpenMP on a quiet machine.
SPIN_TURNS = "1000"


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
    # Its threads wait for each other in a loop that takes the cores from other processes, and from
    # one another where they share a core: 3 times the time of the original's answers. OpenMP reads
    # the number of turns once as well; a setting of the user's decides.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_TURNS)
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch", purpose) from error
    return torch
