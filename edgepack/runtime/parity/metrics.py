"""Distances of measured answers from reference answers, for host and device alike."""

from __future__ import annotations

import math
import operator
from difflib import SequenceMatcher
from itertools import chain
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..tensor import Tensor
from .accuracy import TaskMetric, agreement
from .parts import SNR_LIMIT, Part, Parts

if TYPE_CHECKING:
    from ..documents import Measurement, OutputMetrics, PartErrors

# Longest list that is matched row by row; matching takes quadratic time.
_LONGEST_LIST = 2000


class _PartErrors:
    """Squared errors of one part, accumulated over batches."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.squares = 0.0
        self.elements = 0
        self.worst = 0.0
        self.max_abs = 0.0

    def update(self, error: np.ndarray, samples: Optional[int]) -> None:
        """Add the errors of one batch with samples along axis `samples`; None for one sample."""
        error = _slices(error, self.part)
        if not error.size:
            return
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))
        # One row per sample, whose mean square is the error of that sample.
        with np.errstate(over="ignore"):
            if samples is None:
                rows = error.reshape(1, -1)
            else:
                rows = np.moveaxis(error, samples, 0).reshape(error.shape[samples], -1)
            squares = np.einsum("ij,ij->i", rows, rows)
        self.squares += float(squares.sum())
        self.elements += error.size
        # Errors [[3, 4], [0, 1]] have the mean squares 12.5 and 0.5, of which 12.5 is the worst.
        self.worst = max(self.worst, float(squares.max()) / rows.shape[1])

    def result(self) -> PartErrors:
        """Return the errors as JSON values.

        `snr_db` is that of all samples together, `worst_error` the largest mean squared error of
        one sample, and `max_abs` the largest error of one value.
        """
        error = self.squares / self.elements if self.elements else 0.0
        # Tiny errors (below 1e-162) square to zero, yet the answers are not exact.
        if error == 0.0 and self.max_abs > 0.0:
            error = math.inf
        return {
            "part": self.part.label,
            "snr_db": self.part.snr_db(error),
            "worst_error": min(self.worst, 1e300),
            "max_abs": self.max_abs,
        }


def _slices(array: np.ndarray, part: Part) -> np.ndarray:
    """Return the slices of a part from an array of the output's shape."""
    if part.axis is None:
        return array
    if len(part.ranges) == 1:
        return array[(slice(None),) * part.axis + (slice(*part.ranges[0]),)]
    indices = np.concatenate([np.arange(*bounds) for bounds in part.ranges])
    return np.take(array, indices, axis=part.axis)


class Parity:
    """Differences between reference and measured answers of one output, accumulated over batches.

    The SNR is `Part.snr_db` of the worst part; the cosine is that of all answers as two long
    vectors. Outputs that decide are also compared by decision: top-1 counts equal classes; top-5,
    for scores, counts reference classes among the five best. Integers and booleans are compared
    for equality, element by element. If the length of an axis depends on the values (detected
    boxes), they are compared as lists along that axis, so that one row more does not shift the
    rest.

    Args:
        tensor: the output.
        parts: of the output, from `find_parts`.
        lists: axis whose length depends on the values; None for no axis.
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
        """Add one batch of `count` samples. Another shape is wrong everywhere, save of a list."""
        # Bytes, since NaN != NaN and 0.0 == -0.0.
        if reference.dtype != measured.dtype or reference.tobytes() != measured.tobytes():
            self.exact = False
        if reference.shape != measured.shape:
            self.exact = False
            if not (self.integers and _differ_in_one(reference, measured, self._lists)):
                # Count at least one element, so that an empty output of another shape fails too.
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
        # Equal infinities (masked scores) are not an error, but their difference would be NaN.
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
        # Infinities are counted above; they would make the cosine NaN.
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
        # The batch is the first dynamic axis whose size is the number of samples.
        for axis, (dim, size) in enumerate(zip(self.tensor.shape, shape)):
            if isinstance(dim, str) and size == count:
                return axis
        return None

    def result(self) -> OutputMetrics:
        """Return the metrics as JSON values; `snr_db` is None for exact answers."""
        # A single root of the product makes the cosine of equal vectors exactly 1.
        norm = math.sqrt(self._signal * self._power)
        cosine = self._dot / norm if norm else float(self._signal == self._power)
        parts = [part.result() for part in self._parts]
        part, snr = _find_worst(parts)
        if self.nonfinite:
            part, snr = "", -SNR_LIMIT
        return {
            "compared": "equality" if self.integers else "values",
            "snr_db": snr,
            "part": part,
            "parts": parts,
            "max_abs": self.max_abs,
            "cosine": min(1.0, cosine) if math.isfinite(cosine) else 0.0,
            "bit_exact": self.exact,
            "nonfinite": self.nonfinite,
            "decisions": self.decisions,
            "top1_agreement": self._share("top1"),
            "top5_agreement": None if self.integers else self._share("top5"),
        }

    def _share(self, name: str) -> Optional[float]:
        if not self.decisions:
            return None
        return self._agree[name] / self.decisions


def _find_worst(parts: Sequence[PartErrors]) -> Tuple[str, Optional[float]]:
    """Return the part with the lowest SNR, and that SNR; "" and None if all parts are exact."""
    name, lowest = "", None
    for part in parts:
        snr = part["snr_db"]
        if snr is not None and (lowest is None or snr < lowest):
            name, lowest = part["part"], snr
    return name, lowest


def _differ_in_one(a: np.ndarray, b: np.ndarray, axis: Optional[int]) -> bool:
    """Return True if two arrays differ at most in the length of one axis."""
    if axis is None or a.ndim != b.ndim or axis >= a.ndim:
        return False
    return a.shape[:axis] + a.shape[axis + 1 :] == b.shape[:axis] + b.shape[axis + 1 :]


def _shared_rows(a: np.ndarray, b: np.ndarray, axis: int) -> Tuple[int, int]:
    """Return the number of rows that two lists share in the same order, and the longer length.

    [3, 7, 9] and [3, 9, 4] share 2 of 3: one missing box does not shift all that follow. Two empty
    lists count as 1 of 1, since they agree.
    """
    rows_a = [row.tobytes() for row in np.moveaxis(a, axis, 0)]
    rows_b = [row.tobytes() for row in np.moveaxis(b, axis, 0)]
    longest = max(len(rows_a), len(rows_b))
    if longest == 0:
        return 1, 1
    if longest > _LONGEST_LIST:
        return sum(map(operator.eq, rows_a, rows_b)), longest
    blocks = SequenceMatcher(None, rows_a, rows_b, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks), longest


class Quality:
    """Distances of a model from the original on a set of samples, accumulated by shard.

    Args:
        outputs: of the model, in order; the task metric is that of `labelled_output`.
        parts: of every output, from `find_parts`.
        metric: the task metric, a key of `accuracy.TOP`; "" for none.
        inputs: of the model; a dynamic axis of an output that no input has depends on the values.
    """

    def __init__(
        self, outputs: Sequence[Tensor], parts: Parts, metric: str, inputs: Sequence[Tensor] = ()
    ) -> None:
        self.samples = 0
        self._parities: List[Parity] = []
        for tensor in outputs:
            lists = list_axis(tensor, inputs)
            self._parities.append(Parity(tensor, parts.get(tensor.name, ()), lists))
        self._accuracy: Optional[TaskMetric] = None
        if metric:
            self._accuracy = TaskMetric(outputs, metric)

    def update(
        self,
        originals: Sequence[np.ndarray],
        measured: Sequence[np.ndarray],
        labels: Optional[np.ndarray],
        count: int,
    ) -> None:
        """Add one shard of `count` samples: the original's answers, and this model's.

        Raises InputError if a label is not a class of the scores.
        """
        for parity, original, answer in zip(self._parities, originals, measured):
            parity.update(original, answer, count)
        if self._accuracy and labels is not None:
            self._accuracy.update(originals, measured, labels)
        self.samples += count

    def result(self) -> Measurement:
        """Return `samples`, `outputs` by name, and `metric`, as JSON values."""
        metric = None
        if self._accuracy:
            metric = self._accuracy.result()
        return {
            "samples": self.samples,
            "outputs": {parity.tensor.name: parity.result() for parity in self._parities},
            "metric": metric,
        }


def list_axis(output: Tensor, inputs: Sequence[Tensor]) -> Optional[int]:
    """Return the axis of an output whose length depends on values (detected boxes); else None."""
    if not inputs:
        return None
    input_dims = set(chain.from_iterable(tensor.shape for tensor in inputs))
    for axis, dim in enumerate(output.shape):
        # An expression such as `2*time` follows from an input's axis; a new name does not.
        if isinstance(dim, str) and dim.isidentifier() and dim not in input_dims:
            return axis
    return None


def compare(
    outputs: Sequence[Tensor],
    parts: Parts,
    pairs: Sequence[Tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    inputs: Sequence[Tensor] = (),
) -> Dict[str, OutputMetrics]:
    """Return the metrics per output over (reference, measured) answers of several calls."""
    quality = Quality(outputs, parts, "", inputs)
    for reference, measured in pairs:
        quality.update(reference, measured, None, 1)
    return quality.result()["outputs"]
