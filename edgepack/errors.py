"""Exceptions of edgepack, as one tree.

    EdgepackError                exit 2: could not run            (edgepack.runtime.errors)
    ├── BundleError              the file is not an intact bundle (edgepack.runtime.errors)
    ├── DeviceError              the device cannot run the bundle (edgepack.runtime.errors)
    ├── InputError               the inputs do not fit            (edgepack.runtime.errors)
    ├── GateError                exit 1: a gate was missed        (edgepack.runtime.errors)
    ├── SpecError                a target, a manifest or an option is wrong
    ├── SourceError              the trained model cannot be used
    ├── DataError                calibration or evaluation samples do not fit
    ├── GraphError               export, simplification or a check of the graph failed
    ├── ChainError               a requested pass could not be applied
    ├── EngineError              no engine could be built for the target
    ├── MetricError              the task metric cannot be computed
    ├── PluginError              an installed plug-in cannot be used
    └── HostError                this host lacks something: a package, disk, permission

Errors are raised close to their cause and printed in one place, `edgepack.cli`. Each has a stable
code, a description, a cause and a hint.
"""

from __future__ import annotations

from edgepack.runtime.errors import (
    BundleError,
    DeviceError,
    EdgepackError,
    GateError,
    InputError,
)


class DeprecatedName(FutureWarning):
    """An old name of an option or a key, which works for one release more."""


class SpecError(EdgepackError):
    """A target profile, a manifest or an option is wrong."""


class SourceError(EdgepackError):
    """The trained model cannot be used."""


class DataError(EdgepackError):
    """Calibration or evaluation samples do not fit."""


class GraphError(EdgepackError):
    """Export, simplification or a check of the graph failed."""


class ChainError(EdgepackError):
    """A requested pass could not be applied."""


class EngineError(EdgepackError):
    """No engine could be built for the target."""


class MetricError(EdgepackError):
    """The task metric cannot be computed."""


class PluginError(EdgepackError):
    """An installed plug-in cannot be used."""


class HostError(EdgepackError):
    """This host lacks something that the build needs."""


def suggest_install(extra: str = "") -> str:
    """Return the command that installs edgepack with an extra; edgepack is not on PyPI yet."""
    requirement = "."
    if extra:
        requirement += f"[{extra}]"
    return f"pip install '{requirement}' in a checkout of edgepack"


def missing_package(package: str, extra: str, purpose: str) -> HostError:
    """Return the error for an optional package that is not installed.

    Args:
        package: the distribution's name.
        extra: edgepack's extra that installs it.
        purpose: the feature that needs it, as the start of a sentence.
    """
    return HostError(
        "package-missing",
        f"{purpose} needs the package {package}",
        why=f"{package} cannot be imported in this environment",
        hint=suggest_install(extra),
    )


__all__ = [
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
    "PluginError",
    "SourceError",
    "SpecError",
    "missing_package",
    "suggest_install",
]
