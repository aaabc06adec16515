"""Turn a trained model and a target profile into one file that verifies itself.

    import edgepack

    bundle = edgepack.build(model, target="cpu-fbgemm", calibration=loader, evaluation=loader)
    bundle.verify()

    model = edgepack.load("model-cpu-fbgemm.edgepack")
    outputs = model(image=array)

The command line is `edgepack.cli`, the build `edgepack.pipeline`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.api import Bundle, RejectedError, UnverifiedWarning, Verification, build
    from edgepack.api import open_bundle as open
    from edgepack.errors import (
        BundleError,
        ChainError,
        DataError,
        DeviceError,
        EdgepackError,
        EngineError,
        GateError,
        GraphError,
        HostError,
        InputError,
        MetricError,
        PluginError,
        SourceError,
        SpecError,
    )
    from edgepack.runtime.model import Model, load

__version__ = "0.1.0"

# Name to the module that defines it. All are imported on first use: `edgepack --help` needs no
# numpy, and a program that only loads a bundle needs no onnx.
_HOMES = {
    "Bundle": "api",
    "RejectedError": "api",
    "UnverifiedWarning": "api",
    "Verification": "api",
    "build": "api",
    "open": "api",
    "Model": "runtime.model",
    "load": "runtime.model",
    "BundleError": "errors",
    "ChainError": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "EdgepackError": "errors",
    "EngineError": "errors",
    "GateError": "errors",
    "GraphError": "errors",
    "HostError": "errors",
    "InputError": "errors",
    "MetricError": "errors",
    "PluginError": "errors",
    "SourceError": "errors",
    "SpecError": "errors",
}

__all__ = [
    "Bundle",
    "BundleError",
    "ChainError",
    "DataError",
    "DeviceError",
    "EdgepackError",
    "EngineError",
    "GateError",
    "GraphError",
    "HostError",
    "InputError",
    "MetricError",
    "Model",
    "PluginError",
    "RejectedError",
    "SourceError",
    "SpecError",
    "UnverifiedWarning",
    "Verification",
    "__version__",
    "build",
    "load",
    "open",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgepack' has no attribute {name!r}")
    home = import_module(f"edgepack.{_HOMES[name]}")
    # The function has another name in its module, where it would hide the built-in one.
    value: object = getattr(home, "open_bundle" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
