"""Result of building an engine from a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Built:
    """Artefact of an engine, and the result of checking it on the build host.

    Attributes:
        model: the serialised ONNX.
        notes: steps and checks of the build, in sentences.
        warnings: properties that this host could not check.
        details: figures for the ledger, by name (JSON values).
    """

    model: bytes
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
