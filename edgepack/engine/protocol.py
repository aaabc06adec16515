"""Interface of an engine: a module, or an object, that builds the artefact of a target."""

from __future__ import annotations

from typing import Protocol

from edgepack.engine.built import Built
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target


class Engine(Protocol):
    """Builder of the artefact that runs on the device, from an ONNX model."""

    @property
    def RUNTIME(self) -> str:
        """Engine of the loader that runs the artefact (`runtime.bundle.engines.ENGINES`).

        A bundle runs with its loader alone, so an engine of a plug-in prepares an ONNX for one of
        these.
        """

    def build(self, model: bytes, target: Target, profiles: Profiles) -> Built:
        """Return the artefact, checked on this host.

        Args:
            model: the serialised ONNX after the chain.
            target: the device profile.
            profiles: shapes of inputs with dynamic axes; empty unless TensorRT runs the artefact.

        Raises EngineError if the model does not fit the engine.
        """

    def requirements(self) -> str:
        """Return the device's packages, as the lines of a requirements.txt."""
