"""The name, type and shape of one input or output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Tuple, Union

Dim = Union[int, str]


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        name: as the graph names it.
        dtype: numpy's name of the element type ("float32", "int64", ...).
        shape: a number for a fixed axis, a name for a dynamic one; axes of the same name are
            of the same size.
        kind: of an output: "scores" (one score per class along the last axis) or "values".
    """

    name: str
    dtype: str
    shape: Tuple[Dim, ...]
    kind: str = "values"

    def __str__(self) -> str:
        return "{}:{}:{}".format(self.name, self.dtype, ",".join(map(str, self.shape)))

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def to_json(self) -> Dict[str, Any]:
        """As `bundle.json` and the report hold it."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "kind": self.kind,
        }
