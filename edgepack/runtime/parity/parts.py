"""The parts of an output: slices of one scale, with the signal that errors are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

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
        """The part in numpy's notation, `[:, 4:84]`; empty for the whole output."""
        if self.axis is None:
            return ""
        spelled = "+".join("{}:{}".format(*each) for each in self.ranges[:_SPELLED])
        more = "+..." if len(self.ranges) > _SPELLED else ""
        return "[{}{}{}]".format(":, " * self.axis, spelled, more)

    def snr_db(self, error: float) -> Optional[float]:
        """Return the SNR in dB of a mean squared error; None for no error at all."""
        if error == 0.0:
            return None
        # Squares of very small and very large values leave float64: nothing is claimed of those.
        if self.variance <= 0.0 or not math.isfinite(error):
            return -SNR_LIMIT
        snr = 10.0 * (math.log10(self.variance) - math.log10(error))
        return max(-SNR_LIMIT, min(SNR_LIMIT, snr))

    def to_json(self) -> Dict[str, Any]:
        """As the bundle's index holds it."""
        return {
            "axis": self.axis,
            "ranges": [list(each) for each in self.ranges],
            "variance": self.variance,
        }


# Per output, the parts that its errors are measured in; integers have none.
Parts = Mapping[str, Sequence[Part]]
