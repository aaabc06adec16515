"""Name, type and shape of one input or output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Tuple, Union

if TYPE_CHECKING:
    from .documents import TensorDocument

Dim = Union[int, str]
KINDS = ("scores", "logit", "probability", "classes", "values")


@dataclass(frozen=True)
class Tensor:
    """Input or output of a model.

    Attributes:
        name: its name in the graph.
        dtype: numpy's name of the element type ("float32", "int64", ...).
        shape: a number for a fixed axis, a name for a dynamic one; axes of the same name are
            of the same size.
        kind: of an output, one of KINDS. "scores" holds one score per class along `axis`;
            "logit" decides between two classes by its sign and "probability" by 0.5, value by
            value; "classes" holds the class itself; "values" decide nothing.
        axis: of scores, the axis of the classes.
    """

    name: str
    dtype: str
    shape: Tuple[Dim, ...]
    kind: str = "values"
    axis: int = -1

    def __str__(self) -> str:
        # image:float32:batch,3,224,224
        return f"{self.name}:{self.dtype}:{','.join(map(str, self.shape))}"

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def to_json(self) -> TensorDocument:
        """Return the entry of `bundle.json` and of the report."""
        document: TensorDocument = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "kind": self.kind,
        }
        # The last axis is the default, so it is left out.
        if self.axis != -1:
            document["axis"] = self.axis
        return document
