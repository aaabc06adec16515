"""Loader that ships inside every bundle; it needs numpy and one engine, nothing else.

    import sys
    sys.path.insert(0, "model.edgepack")
    from runtime import load

    model = load()
    outputs = model(image=array)

Errors are instances of `runtime.errors.EdgepackError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    # `from runtime.errors import BundleError` must work without numpy, so numpy is imported only
    # with `load` or `Model`.
    if name in __all__:
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
