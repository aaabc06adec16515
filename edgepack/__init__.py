"""edgepack: a trained model and a target profile in, one file that proves itself out.

    from edgepack import load

    model = load("model-cpu-fbgemm.edgepack")
    outputs = model(image=array)

The command line is `edgepack.cli`, the whole build `edgepack.build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack.runtime.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # numpy is not needed for `edgepack --help`, so the loader is imported when it is asked for.
    if name in ("Model", "load"):
        from edgepack.runtime import model

        return getattr(model, name)
    raise AttributeError(f"module 'edgepack' has no attribute {name!r}")
