"""How far one answer is from another: the metrics, for host and device alike."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np

from ..tensor import Tensor
from .accuracy import Accuracy, within_top

# SNR is told within these bounds, in dB, since JSON has no infinity; an error of exactly zero is
# None, "exact".
SNR_LIMIT = 999.0


class Parity:
    """Differences between a reference and a measured output, accumulated over batches.

    SNR is 10 log10(sum of reference squared / sum of error squared) over all values of all
    samples; cosine is that of the two outputs taken as single long vectors. Agreement is over
    the last axis: top-1, the two best classes are the same; top-5, the reference's best class is
    among the five best measured.
    """

    def __init__(self, scores: bool = False) -> None:
        self.scores = scores
        self.exact = True
        self.max_abs = 0.0
        self.nonfinite = 0
        self.decisions = 0
        self._agree = {"top1": 0, "top5": 0}
        self._signal = self._error = self._power = self._dot = 0.0

    def update(self, reference: np.ndarray, measured: np.ndarray) -> None:
        """Take one batch. A measured output of another shape is as wrong as can be."""
        if reference.shape != measured.shape:
            self.exact = False
            # An output that was empty is as wrong as one that was large.
            self.nonfinite += max(reference.size, measured.size, 1)
            return
        if reference.dtype != measured.dtype or reference.tobytes() != measured.tobytes():
            self.exact = False
        a = reference.astype(np.float64, copy=False)
        b = measured.astype(np.float64, copy=False)
        # Equal infinities (masked scores) are no error; their difference would be NaN.
        same = a == b
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, b - a)
        finite = np.isfinite(error)
        self.nonfinite += int(error.size - np.count_nonzero(finite))
        error = error[finite]
        usable = np.isfinite(a) & np.isfinite(b)
        a_finite, b_finite = a[usable], b[usable]
        with np.errstate(over="ignore"):
            self._signal += float(np.dot(a_finite, a_finite))
            self._power += float(np.dot(b_finite, b_finite))
            self._dot += float(np.dot(a_finite, b_finite))
            self._error += float(np.dot(error, error))
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        if self.scores and a.size:
            best = np.argmax(a, axis=-1)
            self.decisions += best.size
            self._agree["top1"] += int(np.count_nonzero(best == np.argmax(b, axis=-1)))
            self._agree["top5"] += int(np.count_nonzero(within_top(b, best, 5)))

    @property
    def snr_db(self) -> Optional[float]:
        """In dB; None where the error is exactly zero."""
        if self.nonfinite:
            return -SNR_LIMIT
        if self.max_abs == 0.0:
            return None
        # Squares of very small and very large values leave float64; nothing is claimed of those.
        if self._error == 0.0 or self._signal == 0.0 or math.isinf(self._error):
            return -SNR_LIMIT
        if math.isinf(self._signal):
            return SNR_LIMIT
        snr = 10.0 * math.log10(self._signal / self._error)
        return max(-SNR_LIMIT, min(SNR_LIMIT, snr))

    def result(self) -> Dict[str, Any]:
        """The metrics as JSON values."""
        # One root of the product: of equal vectors the quotient is then 1, to the last bit.
        norm = math.sqrt(self._signal * self._power)
        cosine = self._dot / norm if norm else float(self._signal == self._power)
        agreement = {
            name + "_agreement": hits / self.decisions if self.decisions else None
            for name, hits in self._agree.items()
        }
        return {
            "snr_db": self.snr_db,
            "max_abs": self.max_abs,
            "cosine": min(1.0, cosine) if math.isfinite(cosine) else 0.0,
            "bit_exact": self.exact,
            "nonfinite": self.nonfinite,
            "decisions": self.decisions,
            **agreement,
        }


class Quality:
    """Metrics of a model on an evaluation set, shard by shard: how far it is from the original.

    Args:
        outputs: of the model, in order; the task metric is that of the first one of class scores.
        metric: the task metric, a key of `accuracy.TOP`; "" for none.
    """

    def __init__(self, outputs: Sequence[Tensor], metric: str) -> None:
        self.samples = 0
        self._names = [tensor.name for tensor in outputs]
        self._parities = [Parity(tensor.kind == "scores") for tensor in outputs]
        self._scores = next((i for i, t in enumerate(outputs) if t.kind == "scores"), 0)
        self._accuracy = Accuracy(metric) if metric else None

    def update(
        self,
        originals: Sequence[np.ndarray],
        measured: Sequence[np.ndarray],
        labels: Optional[np.ndarray],
        count: int,
    ) -> None:
        """Take one shard of `count` samples: what the original answered, and what this one did.

        Raises InputError where a label is no class of the scores.
        """
        for parity, original, found in zip(self._parities, originals, measured):
            parity.update(original, found)
        if self._accuracy and labels is not None:
            self._accuracy.update(originals[self._scores], measured[self._scores], labels)
        self.samples += count

    def result(self) -> Dict[str, Any]:
        """`samples`, `outputs` by name, and `metric`, as JSON values."""
        return {
            "samples": self.samples,
            "outputs": {n: parity.result() for n, parity in zip(self._names, self._parities)},
            "metric": self._accuracy.result() if self._accuracy else None,
        }


def compare(
    outputs: Sequence[Tensor], pairs: Sequence[Tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
) -> Dict[str, Dict[str, Any]]:
    """Metrics per output over (reference outputs, measured outputs) of several calls."""
    quality = Quality(outputs, "")
    for reference, measured in pairs:
        quality.update(reference, measured, None, 1)
    found: Dict[str, Dict[str, Any]] = quality.result()["outputs"]
    return found
