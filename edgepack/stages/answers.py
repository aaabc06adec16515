"""Survey the original's answers: what no build could prove anything on is refused at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgepack.errors import SourceError
from edgepack.runtime.parity.accuracy import UNLABELLED, is_one_hot, labels_fit

# Answers to different samples that differ by rounding alone, in steps of their type.
ROUNDING = 2


@dataclass
class OutputSurvey:
    """What one output shows over all evaluation samples.

    Attributes:
        name: of the output.
        dtype: numpy's name of it.
        shape: sizes of its axes; None where one varies from batch to batch.
        minimum: smallest finite value; infinite where there is none.
        maximum: largest finite value.
        varies: whether two samples have different answers.
        forms: the ways in which the labels of every batch fit, as `label_forms` gives them.
    """

    name: str
    dtype: str = ""
    shape: list[int | None] = field(default_factory=list)
    minimum: float = np.inf
    maximum: float = -np.inf
    varies: bool = False
    forms: set[str] | None = None
    _lowest: np.ndarray | None = None
    _highest: np.ndarray | None = None

    def add(self, array: np.ndarray, start: int, count: int) -> None:
        """Take the answers to `count` samples, the first of which is number `start`.

        Raises SourceError `original-not-finite` for NaN and +inf.
        """
        _require_numbers(self.name, array, start, count)
        sizes = list(array.shape)
        if self.dtype and len(sizes) == len(self.shape):
            sizes = [a if a == b else None for a, b in zip(self.shape, sizes, strict=True)]
        self.dtype, self.shape = array.dtype.name, sizes
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
        if finite.size:
            self.minimum = min(self.minimum, float(finite.min()))
            self.maximum = max(self.maximum, float(finite.max()))
        if not self.varies:
            self._compare(_by_sample(array, count))

    def _compare(self, rows: np.ndarray) -> None:
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        if self._lowest is not None and self._highest is not None:
            if self._lowest.shape != lowest.shape:
                self.varies = True
                return
            lowest = np.minimum(lowest, self._lowest)
            highest = np.maximum(highest, self._highest)
        self._lowest, self._highest = lowest, highest
        same = lowest == highest
        if lowest.dtype.kind == "f":
            # Masked scores are -inf in some samples and numbers in others.
            usable = np.isfinite(lowest) & np.isfinite(highest)
            size = np.maximum(np.abs(lowest), np.abs(highest))
            with np.errstate(invalid="ignore", over="ignore"):
                near = highest - lowest <= ROUNDING * np.finfo(lowest.dtype).eps * size
            same = same | (usable & near)
        self.varies = not bool(np.all(same))

    def to_json(self, samples: int) -> dict[str, Any]:
        """As the cache holds it."""
        has_values = self.minimum <= self.maximum
        return {
            "dtype": self.dtype,
            "shape": self.shape,
            "minimum": self.minimum if has_values else None,
            "maximum": self.maximum if has_values else None,
            "constant": samples > 1 and not self.varies and 0 not in self.shape,
            "empty": 0 in self.shape,
            "forms": sorted(self.forms or ()),
        }


class AnswerSurvey:
    """What the original's answers and their labels show, batch by batch.

    Args:
        name_outputs: the names of so many outputs, known once the model has answered.
    """

    def __init__(self, name_outputs: Callable[[int], Sequence[str]]) -> None:
        self._name_outputs = name_outputs
        self.outputs: list[OutputSurvey] = []
        self.samples = 0
        self._labels: dict[str, Any] | None = None

    def add(self, answers: Sequence[np.ndarray], labels: np.ndarray | None, count: int) -> None:
        """Take a batch of `count` samples. Raises as `OutputSurvey.add` does."""
        if not self.outputs:
            self.outputs = [OutputSurvey(name) for name in self._name_outputs(len(answers))]
        for survey, array in zip(self.outputs, answers, strict=True):
            survey.add(array, self.samples, count)
            if labels is not None:
                forms = label_forms(array.shape, labels)
                survey.forms = forms if survey.forms is None else survey.forms & forms
        if labels is not None:
            self._add_labels(labels, count)
        self.samples += count

    def _add_labels(self, labels: np.ndarray, count: int) -> None:
        values = labels.astype(np.float64)
        if labels.size > count:
            values = values[~np.isin(values, UNLABELLED)]
        facts = self._labels or {"whole": True, "minimum": None, "maximum": None}
        whole = bool(np.all(values == np.round(values)))
        facts["whole"] = facts["whole"] and whole
        facts["dtype"], facts["shape"] = labels.dtype.name, list(labels.shape[1:])
        if np.isfinite(values).any():
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            known = facts["minimum"] is not None
            facts["minimum"] = min(low, facts["minimum"]) if known else low
            facts["maximum"] = max(high, facts["maximum"]) if known else high
        self._labels = facts

    def to_json(self) -> dict[str, Any]:
        """As the cache holds it."""
        return {
            "samples": self.samples,
            "outputs": [survey.to_json(self.samples) for survey in self.outputs],
            "labels": self._labels,
        }


def label_forms(shape: Sequence[int], labels: np.ndarray) -> set[str]:
    """Return the ways in which labels may belong to an output of a shape.

    "classes:AXIS": a class for each decision along that axis; "one-hot:AXIS": the same, one-hot;
    "values": one label for each value. AXIS is 1 or -1.
    """
    forms = set()
    for axis in {1: (-1,), 2: (-1,)}.get(len(shape), (1, -1) if shape else ()):
        if shape[axis] < 2:
            continue
        if labels.shape == tuple(shape):
            forms |= {f"one-hot:{axis}"} if is_one_hot(labels, axis) else set()
        elif labels_fit(shape, labels.shape, "scores", axis):
            forms.add(f"classes:{axis}")
    if labels_fit(shape, labels.shape, "values"):
        forms.add("values")
    return forms


def refuse_unprovable(
    survey: Mapping[str, Any], names: Sequence[str], trial: bool
) -> tuple[str, ...]:
    """Refuse answers that cannot prove anything, and return what to warn of.

    Args:
        survey: what `AnswerSurvey.to_json` gave.
        names: of the outputs.
        trial: the samples are random numbers, so that nothing is proved anyway.

    Raises SourceError `original-not-finite` and `original-constant`.
    """
    outputs = list(zip(names, survey["outputs"], strict=True))
    for name, facts in outputs:
        if facts["maximum"] is None and not facts["empty"]:
            raise SourceError(
                "original-not-finite",
                f"the original's output {name} holds no finite value",
                why=f"every value is -inf, in all {survey['samples']:,} evaluation samples",
                hint="run the model on one sample before the build; is a mask all false?",
            )
    constant = [name for name, facts in outputs if facts["constant"]]
    if constant and len(constant) == len(outputs) and not trial:
        raise SourceError(
            "original-constant",
            f"the original's output {constant[0]} is the same for every evaluation sample",
            why=f"{survey['samples']:,} samples, one answer"
            + (f"; the same holds of {', '.join(constant[1:])}" if constant[1:] else ""),
            hint="an answer that no input changes proves nothing: check the weights that were "
            "loaded, the normalisation of the inputs, and that the samples differ",
        )
    return tuple(
        f"the original's output {name} is the same for every evaluation sample: nothing is "
        "proved about how it depends on the inputs"
        for name in constant
    )


def _by_sample(array: np.ndarray, count: int) -> np.ndarray:
    """Answers with samples along axis 0; an output without a batch axis is one answer."""
    return array if array.ndim and len(array) == count else array[None]


def _require_numbers(name: str, array: np.ndarray, start: int, count: int) -> None:
    """Refuse NaN and +inf. -inf is legitimate: masked scores, the logarithm of 0."""
    if array.dtype.kind != "f":
        return
    wrong = np.isnan(array) | np.isposinf(array)
    if not wrong.any():
        return
    position = np.argwhere(_by_sample(wrong, count))[0].tolist()
    value = "NaN" if np.isnan(array[wrong][0]) else "inf"
    number = int(np.count_nonzero(wrong))
    raise SourceError(
        "original-not-finite",
        f"the original's output {name} is {value} in evaluation sample {start + position[0]}, "
        "counted from 0",
        why=f"the value at {tuple(position[1:])} is {value}; {number:,} of {array.size:,} values "
        "of this batch are NaN or inf",
        hint="look for a division by zero, the logarithm or root of a negative number, or an "
        "overflow: in the weights, or on inputs of another normalisation",
    )
