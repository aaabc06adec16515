"""A graph pass: bound the magnitude of every weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.data.samples import Samples
from edgepack.ledger import PassResult, Progress
from edgepack.passes import GraphPass
from edgepack.passes.options import PassOptions, check_number

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ClipOptions(PassOptions):
    """Options of `clip`.

    Attributes:
        limit: largest magnitude of a weight.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_number("clip", "limit", self.limit, 0)

    def conflict(self, earlier: Sequence[tuple[str, PassOptions]]) -> str:
        """Reject integers: their limits are those of their type."""
        if any(options.multiplies_integers for _, options in earlier):
            return "clip works on float weights"
        return ""


class Clip(GraphPass[ClipOptions]):
    """Bound the magnitude of every weight."""

    name = "clip"
    options = ClipOptions

    def advice(self) -> str:
        """Suggest how to lose less quality."""
        return "clip at a larger limit (--chain clip:limit=2)"

    def apply(
        self,
        model: onnx.ModelProto,
        samples: Samples | None,
        options: ClipOptions,
        progress: Progress,
    ) -> PassResult[onnx.ModelProto]:
        """Clip the float32 weights of the layers in a copy of the model."""
        import onnx
        from onnx import numpy_helper

        from edgepack.onnx_tools.view import GraphView, list_weights

        result = onnx.ModelProto()
        result.CopyFrom(model)
        view = GraphView(result)
        clipped = 0
        # Only the weights of layers: a constant 255 that divides the pixels has to stay 255.
        for name in list_weights(view):
            tensor = view.initializers[name]
            weights = numpy_helper.to_array(tensor)
            if weights.dtype != np.float32:
                continue
            bounded = np.clip(weights, -options.limit, options.limit)
            clipped += int((bounded != weights).sum())
            tensor.CopyFrom(numpy_helper.from_array(bounded, name))
        noun = "weight" if clipped == 1 else "weights"
        note = f"Clipped {clipped:,} {noun} to a magnitude of {options.limit:g}."
        return PassResult(result, clipped > 0, (note,), {"clipped": clipped})


CLIP = Clip()
