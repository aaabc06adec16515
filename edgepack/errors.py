"""Every error that edgepack raises on purpose, as one tree.

    EdgepackError                exit 2: could not run            (edgepack.runtime.errors)
    ├── BundleError              the file is not an intact bundle (edgepack.runtime.errors)
    ├── DeviceError              the device cannot run the bundle (edgepack.runtime.errors)
    ├── InputError               what was fed does not fit        (edgepack.runtime.errors)
    ├── GateError                exit 1: a gate was missed        (edgepack.runtime.errors)
    ├── SpecError                a target, a manifest or an option is wrong
    ├── SourceError              the trained model cannot be taken
    ├── DataError                calibration or evaluation samples do not fit
    ├── GraphError               export, simplification or a check of the graph failed
    ├── ChainError               a pass that was asked for could not be applied
    ├── EngineError              no engine could be built for the target
    └── HostError                this host lacks something: a package, disk, permission

An error is raised where the cause is known and printed in one place, `edgepack.cli`. Each
carries a stable code, what happened, why, and what to do.
"""

from __future__ import annotations

from edgepack.runtime.errors import (
    BundleError,
    DeviceError,
    EdgepackError,
    GateError,
    InputError,
)


class SpecError(EdgepackError):
    """A target profile, a manifest or an option is wrong."""


class SourceError(EdgepackError):
    """The trained model cannot be taken."""


class DataError(EdgepackError):
    """Calibration or evaluation samples do not fit."""


class GraphError(EdgepackError):
    """Export, simplification or a check of the graph failed."""


class ChainError(EdgepackError):
    """A pass that was asked for could not be applied."""


class EngineError(EdgepackError):
    """No engine could be built for the target."""


class HostError(EdgepackError):
    """This host lacks something that the build needs."""


def missing_package(package: str, extra: str, purpose: str) -> HostError:
    """The error for an optional package that is not installed.

    Args:
        package: the distribution's name.
        extra: edgepack's extra that brings it.
        purpose: what needs it, as the start of a sentence.
    """
    return HostError(
        "package-missing",
        f"{purpose} needs the package {package}",
        why=f"{package} cannot be imported in this environment",
        hint=f"pip install 'edgepack[{extra}]'",
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
    "SourceError",
    "SpecError",
    "missing_package",
]
