"""Global state of torch during an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgepack.graph.quiet import quiet


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Export without gradients, without output, and without torch's fast path for attention.

    The fast path replaces a whole encoder layer with one operator that ONNX does not have.
    """
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
