"""Parts of an output: slices of one scale, with the signal that errors are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Mapping, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from ..documents import PartEntry

# SNR stays within these bounds, in dB, since JSON has no infinity.
SNR_LIMIT = 999.0
_SPELLED = 3


@dataclass(frozen=True)
class Part:
    """Slices of an output whose values are of one scale.

    Attributes:
        axis: of the output, the batch's included; None for the whole output.
        ranges: half-open ranges of slices along the axis; empty for the whole output.
        variance: mean variance of its elements over the evaluation samples, in the original's
            answers and their unit squared: the signal.
    """

    axis: Optional[int]
    ranges: Tuple[Tuple[int, int], ...]
    variance: float

    @property
    def label(self) -> str:
        """Part in numpy's notation, `[:, 4:84]`; empty for the whole output."""
        if self.axis is None:
            return ""
        # Axis 1 with ranges (0, 4) and (5, 85) is `[:, 0:4+5:85]`.
        texts = [f"{start}:{end}" for start, end in self.ranges[:_SPELLED]]
        if len(self.ranges) > _SPELLED:
            texts.append("...")
        return f"[{':, ' * self.axis}{'+'.join(texts)}]"

    def snr_db(self, error: float) -> Optional[float]:
        """Return the SNR in dB of a mean squared error; None for an exact answer.

        A variance of 4 and an error of 0.04 give 10 * log10(4 / 0.04) = 20 dB.
        """
        if error == 0.0:
            return None
        # Squares of very small and very large values overflow or underflow float64: claim nothing.
        if self.variance <= 0.0 or not math.isfinite(error):
            return -SNR_LIMIT
        snr = 10.0 * (math.log10(self.variance) - math.log10(error))
        return max(-SNR_LIMIT, min(SNR_LIMIT, snr))

    def to_json(self) -> PartEntry:
        """Return the entry of the bundle's index."""
        return {
            "axis": self.axis,
            "ranges": [list(bounds) for bounds in self.ranges],
            "variance": self.variance,
        }


# Output -> the parts whose errors are measured separately; integers have none.
Parts = Mapping[str, Sequence[Part]]
