"""Distances of measured answers from reference answers, for host and device alike."""

from __future__ import annotations

import math
from difflib import SequenceMatcher
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..tensor import Tensor
from .accuracy import TaskMetric, agreement
from .parts import SNR_LIMIT, Part, Parts

# Rows of a list up to which its order may shift; matching takes up to the square of them.
_LONGEST_LIST = 2000


class _PartErrors:
    """Squared errors of one part, over batches."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.squares = 0.0
        self.elements = 0
        self.worst = 0.0
        self.max_abs = 0.0

    def update(self, error: np.ndarray, samples: Optional[int]) -> None:
        """Add the errors of one batch, samples along the axis `samples`; None is one sample."""
        error = _slices(error, self.part)
        if not error.size:
            return
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))
        with np.errstate(over="ignore"):
            if samples is None:
                rows = error.reshape(1, -1)
            else:
                rows = np.moveaxis(error, samples, 0).reshape(error.shape[samples], -1)
            squares = np.einsum("ij,ij->i", rows, rows)
        self.squares += float(squares.sum())
        self.elements += error.size
        self.worst = max(self.worst, float(squares.max()) / rows.shape[1])

    def result(self) -> Dict[str, Any]:
        """Return the errors as JSON values.

        `snr_db` of all samples together, `worst_error`, the largest mean squared error of one
        sample, and `max_abs`, the largest error of one value.
        """
        error = self.squares / self.elements if self.elements else 0.0
        # Squares of the smallest numbers are zero; that error is not.
        if error == 0.0 and self.max_abs > 0.0:
            error = math.inf
        return {
            "part": self.part.label,
            "snr_db": self.part.snr_db(error),
            "worst_error": min(self.worst, 1e300),
            "max_abs": self.max_abs,
        }


def _slices(array: np.ndarray, part: Part) -> np.ndarray:
    """Return the part of an array of the output's shape."""
    if part.axis is None:
        return array
    if len(part.ranges) == 1:
        return array[(slice(None),) * part.axis + (slice(*part.ranges[0]),)]
    chosen = np.concatenate([np.arange(*each) for each in part.ranges])
    return np.take(array, chosen, axis=part.axis)


class Parity:
    """Differences between reference and measured answers of one output, over batches.

    The SNR is `Part.snr_db` of the worst part; cosine is that of the answers taken as two long
    vectors. Outputs that decide are compared by decision: top-1, both choose the same class;
    top-5, of scores, the reference's best class is among the five best. Integers and booleans are
    compared for equality: element by element, or, where the length of an axis depends on the
    values (kept boxes), as lists along that axis, in which a row more or less shifts the rest.

    Args:
        tensor: the output.
        parts: of the output, from `find_parts`.
        lists: axis whose length depends on the values; None where no axis does.
    """

    def __init__(
        self, tensor: Tensor, parts: Sequence[Part] = (), lists: Optional[int] = None
    ) -> None:
        self.tensor = tensor
        self.integers = not tensor.dtype.startswith("float")
        self.exact = True
        self.max_abs = 0.0
        self.nonfinite = 0
        self.decisions = 0
        self._lists = lists
        self._agree = {"top1": 0, "top5": 0}
        self._parts = [_PartErrors(part) for part in parts]
        self._signal = self._power = self._dot = 0.0

    def update(self, reference: np.ndarray, measured: np.ndarray, count: int = 1) -> None:
        """Add one batch of `count` samples. Another shape is as wrong as can be, save of a list."""
        if reference.dtype != measured.dtype or reference.tobytes() != measured.tobytes():
            self.exact = False
        if reference.shape != measured.shape:
            self.exact = False
            if not (self.integers and _differ_in_one(reference, measured, self._lists)):
                # An output that was empty is as wrong as one that was large.
                self.nonfinite += max(reference.size, measured.size, 1)
                return
        if self.integers:
            self._count_equal(reference, measured)
        else:
            self._add_errors(reference, measured, count)

    def _count_equal(self, reference: np.ndarray, measured: np.ndarray) -> None:
        if self._lists is not None:
            equal, total = _shared_rows(reference, measured, self._lists)
        else:
            equal, total = int(np.count_nonzero(reference == measured)), reference.size
            with np.errstate(over="ignore"):
                errors = np.abs(measured.astype(np.float64) - reference.astype(np.float64))
            self.max_abs = max(self.max_abs, float(errors.max(initial=0.0)))
        self.decisions += total
        self._agree["top1"] += equal

    def _add_errors(self, reference: np.ndarray, measured: np.ndarray, count: int) -> None:
        a = reference.astype(np.float64, copy=False)
        b = measured.astype(np.float64, copy=False)
        # Equal infinities (masked scores) are no error; their difference would be NaN.
        same = a == b
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, b - a)
        finite = np.isfinite(error)
        self.nonfinite += int(error.size - np.count_nonzero(finite))
        error = np.where(finite, error, 0.0)
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        samples = self._sample_axis(a.shape, count)
        for part in self._parts:
            part.update(error, samples)
        usable = np.isfinite(a) & np.isfinite(b)
        a_finite, b_finite = a[usable], b[usable]
        with np.errstate(over="ignore"):
            self._signal += float(np.dot(a_finite, a_finite))
            self._power += float(np.dot(b_finite, b_finite))
            self._dot += float(np.dot(a_finite, b_finite))
        decided, same, among = agreement(reference, measured, self.tensor.kind, self.tensor.axis)
        self.decisions += decided
        self._agree["top1"] += same
        self._agree["top5"] += among

    def _sample_axis(self, shape: Tuple[int, ...], count: int) -> Optional[int]:
        if count == 1 or len(shape) != self.tensor.rank:
            return None
        for axis, (dim, size) in enumerate(zip(self.tensor.shape, shape)):
            if isinstance(dim, str) and size == count:
                return axis
        return None

    def result(self) -> Dict[str, Any]:
        """Return the metrics as JSON values; `snr_db` is None where no error was measured."""
        # One root of the product: of equal vectors the quotient is then 1, to the last bit.
        norm = math.sqrt(self._signal * self._power)
        cosine = self._dot / norm if norm else float(self._signal == self._power)
        agreement = {
            name + "_agreement": hits / self.decisions if self.decisions else None
            for name, hits in self._agree.items()
        }
        if self.integers:
            agreement["top5_agreement"] = None
        parts = [part.result() for part in self._parts]
        worst = _worst(parts)
        if self.nonfinite:
            worst = {"part": "", "snr_db": -SNR_LIMIT}
        return {
            "compared": "equality" if self.integers else "values",
            "snr_db": worst["snr_db"],
            "part": worst["part"],
            "parts": parts,
            "max_abs": self.max_abs,
            "cosine": min(1.0, cosine) if math.isfinite(cosine) else 0.0,
            "bit_exact": self.exact,
            "nonfinite": self.nonfinite,
            "decisions": self.decisions,
            **agreement,
        }


def _worst(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the part with the lowest SNR; one without an error where all are."""
    lossy = [part for part in parts if part["snr_db"] is not None]
    if not lossy:
        return {"part": "", "snr_db": None}
    return min(lossy, key=lambda part: float(part["snr_db"]))


def _differ_in_one(a: np.ndarray, b: np.ndarray, axis: Optional[int]) -> bool:
    """Return whether two lists have rows of the same shape."""
    if axis is None or a.ndim != b.ndim or axis >= a.ndim:
        return False
    return a.shape[:axis] + a.shape[axis + 1 :] == b.shape[:axis] + b.shape[axis + 1 :]


def _shared_rows(a: np.ndarray, b: np.ndarray, axis: int) -> Tuple[int, int]:
    """Return how many rows two lists share in the same order, and the longer length.

    [3, 7, 9] and [3, 9, 4] share 2 of 3: one box more or less does not shift all that follow.
    Two empty lists share the one thing that they say.
    """
    rows = [[row.tobytes() for row in np.moveaxis(array, axis, 0)] for array in (a, b)]
    longest = max(map(len, rows))
    if longest == 0:
        return 1, 1
    if longest > _LONGEST_LIST:
        return sum(one == other for one, other in zip(*rows)), longest
    blocks = SequenceMatcher(None, rows[0], rows[1], autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks), longest


class Quality:
    """Distances of a model from the original on a set of samples, shard by shard.

    Args:
        outputs: of the model, in order; the task metric is that of `labelled_output`.
        parts: of every output, from `find_parts`.
        metric: the task metric, a key of `accuracy.TOP`; "" for none.
        inputs: of the model: an axis of an output that none of them has is as long as the values
            decide.
    """

    def __init__(
        self, outputs: Sequence[Tensor], parts: Parts, metric: str, inputs: Sequence[Tensor] = ()
    ) -> None:
        self.samples = 0
        self._names = [tensor.name for tensor in outputs]
        self._parities = [
            Parity(tensor, parts.get(tensor.name, ()), list_axis(tensor, inputs))
            for tensor in outputs
        ]
        self._accuracy = TaskMetric(outputs, metric) if metric else None

    def update(
        self,
        originals: Sequence[np.ndarray],
        measured: Sequence[np.ndarray],
        labels: Optional[np.ndarray],
        count: int,
    ) -> None:
        """Add one shard of `count` samples: the original's answers, and this model's.

        Raises InputError where a label is no class of the scores.
        """
        for parity, original, answer in zip(self._parities, originals, measured):
            parity.update(original, answer, count)
        if self._accuracy and labels is not None:
            self._accuracy.update(originals, measured, labels)
        self.samples += count

    def result(self) -> Dict[str, Any]:
        """Return `samples`, `outputs` by name, and `metric`, as JSON values."""
        return {
            "samples": self.samples,
            "outputs": {n: parity.result() for n, parity in zip(self._names, self._parities)},
            "metric": self._accuracy.result() if self._accuracy else None,
        }


def list_axis(output: Tensor, inputs: Sequence[Tensor]) -> Optional[int]:
    """Return the axis of an output whose length depends on values, as of kept boxes; else None."""
    if not inputs:
        return None
    stated = {dim for tensor in inputs for dim in tensor.shape if isinstance(dim, str)}
    # `2*time` follows from an input's axis; a name of its own does not.
    own = [
        axis
        for axis, dim in enumerate(output.shape)
        if isinstance(dim, str) and dim.isidentifier() and dim not in stated
    ]
    return own[0] if own else None


def compare(
    outputs: Sequence[Tensor],
    parts: Parts,
    pairs: Sequence[Tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    inputs: Sequence[Tensor] = (),
) -> Dict[str, Dict[str, Any]]:
    """Return the metrics per output over (reference, measured) answers of several calls."""
    quality = Quality(outputs, parts, "", inputs)
    for reference, measured in pairs:
        quality.update(reference, measured, None, 1)
    metrics: Dict[str, Dict[str, Any]] = quality.result()["outputs"]
    return metrics
