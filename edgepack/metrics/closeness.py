"""One closeness figure for every kind of output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def closeness_db(metrics: Mapping[str, Any]) -> float:
    """Return the SNR of one output in dB, comparable across outputs; infinite if it is exact.

    For an output that is compared for equality, the share of misses counts as its error: 1 % of
    misses is 20 dB. A figure that is not a number proves nothing, so it is minus infinity.
    """
    if metrics.get("nonfinite"):
        return -math.inf
    if metrics.get("compared") == "equality":
        agreement = metrics["top1_agreement"]
        # None means that there were no elements to compare.
        if agreement is None or agreement >= 1.0:
            return math.inf
        if math.isnan(agreement):
            return -math.inf
        return -10.0 * math.log10(1.0 - agreement)
    # None means that no error was measured.
    if metrics["snr_db"] is None:
        return math.inf
    snr = float(metrics["snr_db"])
    return -math.inf if math.isnan(snr) else snr
