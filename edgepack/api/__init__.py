"""Python interface: build a bundle from a model in memory, open one, verify it, call it."""

from edgepack.api.building import BuildOptions, build
from edgepack.api.bundle import Bundle, RejectedError, UnverifiedWarning, Verification, open_bundle

__all__ = [
    "BuildOptions",
    "Bundle",
    "RejectedError",
    "UnverifiedWarning",
    "Verification",
    "build",
    "open_bundle",
]
