"""The loader: shipped inside every bundle; numpy and one engine, nothing else.

    import sys
    sys.path.insert(0, "model.edgepack")
    from runtime import load

    model = load()
    outputs = model(image=array)

Every error is one of `runtime.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    # numpy is imported when a model is loaded, not when an error is named.
    if name in __all__:
        from . import model

        return getattr(model, name)
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
