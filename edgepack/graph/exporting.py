"""The state of torch in which a module is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgepack.graph.quiet import quiet


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Export without gradients, without output, and without torch's fast path for attention.

    The fast path replaces a whole encoder layer by one operator that has no ONNX form.
    """
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
