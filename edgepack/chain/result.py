"""What a pass of the chain returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Model = TypeVar("Model")


@dataclass(frozen=True)
class PassResult(Generic[Model]):
    """Model in, `PassResult` out.

    Attributes:
        model: the model after the pass.
        changed: whether the pass changed it.
        notes: what it did; where it did nothing, the reason. Whole sentences.
        details: figures for the ledger, by name (JSON values).
    """

    model: Model
    changed: bool
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
