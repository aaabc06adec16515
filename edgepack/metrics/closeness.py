"""One figure for the closeness of an output, whatever it is compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def closeness_db(metrics: Mapping[str, Any]) -> float:
    """Return the SNR of one output, comparable across outputs: infinite where it is exact.

    The misses of an output that is compared for equality count as its error.
    """
    if metrics.get("nonfinite"):
        return -math.inf
    if metrics.get("compared") == "equality":
        misses = 1.0 - (1.0 if metrics["top1_agreement"] is None else metrics["top1_agreement"])
        return -10.0 * math.log10(misses) if misses > 0 else math.inf
    return math.inf if metrics["snr_db"] is None else float(metrics["snr_db"])
