"""What an engine made of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Built:
    """What ships, and what was proved of it on the build host.

    Attributes:
        model: the serialised ONNX.
        notes: what was done; whole sentences.
        warnings: what could not be proved here.
        details: figures for the ledger, by name (JSON values).
    """

    model: bytes
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
