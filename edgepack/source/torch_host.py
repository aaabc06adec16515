"""The host's torch, imported late, and the environment that would unmake its safety."""

from __future__ import annotations

import os
from typing import Any

from edgepack.errors import SourceError, missing_package


def import_torch(purpose: str) -> Any:
    """The torch module, after a look at the environment.

    Args:
        purpose: what needs it, as the start of a sentence.

    Raises:
        HostError: package-missing.
        SourceError: source-unsafe-environment where a variable turns every `torch.load` into
            one that runs code, also those inside torch's own loaders.
    """
    unsafe = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    if unsafe:
        raise SourceError(
            "source-unsafe-environment",
            "torch is told to run code from every file that it loads",
            why=f"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD={unsafe} is set",
            hint="unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD; --trust-pickle trusts one file",
        )
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch", purpose) from error
    return torch
