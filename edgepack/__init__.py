"""Turn a trained model and a target profile into one file that verifies itself.

    from edgepack import load

    model = load("model-cpu-fbgemm.edgepack")
    outputs = model(image=array)

The command line is `edgepack.cli`, the build `edgepack.pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack.runtime.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # `edgepack --help` does not need numpy, so the loader is imported on first use.
    if name in ("Model", "load"):
        from edgepack.runtime import model

        return getattr(model, name)
    raise AttributeError(f"module 'edgepack' has no attribute {name!r}")
