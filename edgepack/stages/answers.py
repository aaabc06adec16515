"""Survey the original model's answers, and refuse those that no build could be verified on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from edgepack.errors import SourceError
from edgepack.runtime.parity.accuracy import UNLABELLED, is_one_hot, labels_fit

# Answers to different samples that differ by rounding alone, in steps of their type.
ROUNDING = 2
# Type of labels that are texts; numpy's name of it contains the length.
TEXT = "str"


class OutputFacts(TypedDict):
    """Statistics of one output, in the cache's form.

    Keys:
        dtype: numpy's name of its type.
        shape: sizes of its axes; None for an axis that varies from batch to batch.
        minimum: smallest finite value; None if there is none.
        maximum: largest finite value; None if there is none.
        constant: True if all of several samples have the same answer.
        empty: True if it has no values.
        forms: forms of labels that fit every batch, as `list_label_forms` returns them.
    """

    dtype: str
    shape: list[int | None]
    minimum: float | None
    maximum: float | None
    constant: bool
    empty: bool
    forms: list[str]


class LabelFacts(TypedDict):
    """Statistics of the labels, in the cache's form.

    Keys:
        whole: True if all of them are integers.
        dtype: numpy's name of their type; TEXT for texts, of any length.
        shape: of one sample's labels.
        minimum: smallest finite value; None if there is none.
        maximum: largest finite value; None if there is none.
    """

    whole: bool
    dtype: str
    shape: list[int]
    minimum: float | None
    maximum: float | None


class Survey(TypedDict):
    """Statistics of the original model's answers; `labels` is None for a set without labels."""

    samples: int
    outputs: list[OutputFacts]
    labels: LabelFacts | None


@dataclass
class OutputSurvey:
    """Statistics of one output over all evaluation samples.

    Attributes:
        name: of the output.
        dtype: numpy's name of its type.
        shape: sizes of its axes; None for an axis that varies from batch to batch.
        minimum: smallest finite value; infinite if there is none.
        maximum: largest finite value.
        varies: True if two samples have different answers.
        forms: forms of labels that fit every batch, as `list_label_forms` returns them.
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
        """Add the answers to `count` samples, starting with number `start`.

        Raises SourceError `original-not-finite` for NaN and +inf.
        """
        _require_numbers(self.name, array, start, count)
        sizes: list[int | None] = list(array.shape)
        if self.dtype:
            sizes = _merge_shapes(self.shape, sizes)
        self.dtype, self.shape = array.dtype.name, sizes
        finite = array
        if array.dtype.kind == "f":
            finite = array[np.isfinite(array)]
        if finite.size:
            self.minimum = min(self.minimum, float(finite.min()))
            self.maximum = max(self.maximum, float(finite.max()))
        if not self.varies:
            self._compare(_split_samples(array, count))

    def _compare(self, rows: np.ndarray) -> None:
        """Update `varies` by a batch of answers, one per row.

        Each value's range over all samples is enough: an output is constant if the lowest and
        the highest answer agree everywhere, up to rounding.
        """
        lowest, highest = rows.min(axis=0), rows.max(axis=0)
        if self._lowest is not None and self._highest is not None:
            if self._lowest.shape != lowest.shape:
                self.varies = True
                return
            lowest = np.minimum(lowest, self._lowest)
            highest = np.maximum(highest, self._highest)
        self._lowest, self._highest = lowest, highest
        # [0.25, 1.0] and [0.25, 1.5] have the extremes [0.25, 1.0] and [0.25, 1.5], which differ at
        # the second value: the output varies, and needs no further comparison.
        same = lowest == highest
        if lowest.dtype.kind == "f":
            # Masked scores are -inf in some samples and numbers in others.
            usable = np.isfinite(lowest) & np.isfinite(highest)
            size = np.maximum(np.abs(lowest), np.abs(highest))
            with np.errstate(invalid="ignore", over="ignore"):
                near = highest - lowest <= ROUNDING * np.finfo(lowest.dtype).eps * size
            same = same | (usable & near)
        self.varies = not bool(np.all(same))

    def to_json(self, samples: int) -> OutputFacts:
        """Return the statistics in the cache's form."""
        # Without a finite value the minimum is still inf, and the maximum -inf.
        minimum, maximum = None, None
        if self.minimum <= self.maximum:
            minimum, maximum = self.minimum, self.maximum
        return {
            "dtype": self.dtype,
            "shape": self.shape,
            "minimum": minimum,
            "maximum": maximum,
            "constant": samples > 1 and not self.varies and 0 not in self.shape,
            "empty": 0 in self.shape,
            "forms": sorted(self.forms or ()),
        }


class AnswerSurvey:
    """Statistics of the original model's answers and of their labels, added batch by batch.

    Args:
        name_outputs: returns the names of a number of outputs, after the model's first answer.
    """

    def __init__(self, name_outputs: Callable[[int], Sequence[str]]) -> None:
        self._name_outputs = name_outputs
        self.outputs: list[OutputSurvey] = []
        self.samples = 0
        self._labels: LabelFacts | None = None

    def add(self, answers: Sequence[np.ndarray], labels: np.ndarray | None, count: int) -> None:
        """Add a batch of `count` samples. Raises as `OutputSurvey.add` does."""
        if not self.outputs:
            self.outputs = [OutputSurvey(name) for name in self._name_outputs(len(answers))]
        for survey, array in zip(self.outputs, answers, strict=True):
            survey.add(array, self.samples, count)
            # Labels of zeros and ones may look one-hot in one batch, and not in the next.
            # Texts are the labels of no output itself.
            if labels is not None and labels.dtype.kind != "U":
                forms = list_label_forms(array.shape, labels)
                # A form must fit every batch.
                if survey.forms is not None:
                    forms &= survey.forms
                survey.forms = forms
        if labels is not None:
            self._add_labels(labels, count)
        self.samples += count

    def _add_labels(self, labels: np.ndarray, count: int) -> None:
        if labels.dtype.kind == "U":
            shape = list(labels.shape[1:])
            self._labels = LabelFacts(
                whole=False, dtype=TEXT, shape=shape, minimum=None, maximum=None
            )
            return
        values = labels.astype(np.float64)
        # Only maps and sequences have unlabelled positions, such as -100: in [3, -100, -100] for
        # three tokens, 3 is both the smallest and the largest label.
        if labels.size > count:
            values = values[~np.isin(values, UNLABELLED)]
        whole = bool(np.all(values == np.round(values)))
        minimum = maximum = None
        if self._labels is not None:
            whole = whole and self._labels["whole"]
            minimum, maximum = self._labels["minimum"], self._labels["maximum"]
        if np.isfinite(values).any():
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            if minimum is not None and maximum is not None:
                low, high = min(low, minimum), max(high, maximum)
            minimum, maximum = low, high
        facts: LabelFacts = {
            "whole": whole,
            "dtype": labels.dtype.name,
            "shape": list(labels.shape[1:]),
            "minimum": minimum,
            "maximum": maximum,
        }
        self._labels = facts

    def to_json(self) -> Survey:
        """Return the statistics in the cache's form."""
        return {
            "samples": self.samples,
            "outputs": [survey.to_json(self.samples) for survey in self.outputs],
            "labels": self._labels,
        }


def list_label_forms(shape: Sequence[int], labels: np.ndarray) -> set[str]:
    """Return the forms in which labels fit an output of a shape.

    "classes:AXIS": a class for each decision along that axis; "one-hot:AXIS": the same, one-hot;
    "values": one label for each value. AXIS is 1 or -1. Labels of shape (8,) fit scores of shape
    (8, 10) as "classes:-1", labels of shape (8, 64, 64) fit a map (8, 21, 64, 64) as "classes:1".
    """
    forms = set()
    # With two axes, axis 1 is the last one; a scalar has none.
    for axis in {0: (), 1: (-1,), 2: (-1,)}.get(len(shape), (1, -1)):
        if shape[axis] < 2:
            continue
        if labels.shape == tuple(shape):
            if is_one_hot(labels, axis):
                forms.add(f"one-hot:{axis}")
        elif labels_fit(shape, labels.shape, "scores", axis):
            forms.add(f"classes:{axis}")
    # One form does not exclude another: zeros and ones (8, 10) may be one-hot classes of scores
    # (8, 10), or the labels of ten separate decisions.
    if labels_fit(shape, labels.shape, "values"):
        forms.add("values")
    return forms


def refuse_unprovable(survey: Survey, names: Sequence[str], trial: bool) -> tuple[str, ...]:
    """Refuse answers that cannot prove anything, and return warnings.

    A model whose only output is constant is refused; one that has a constant output besides
    others, such as a learned scale, gets a warning.

    Args:
        survey: the result of `AnswerSurvey.to_json`.
        names: of the outputs.
        trial: True for random samples, which prove nothing anyway.

    Raises SourceError `original-not-finite` and `original-constant`.
    """
    outputs = list(zip(names, survey["outputs"], strict=True))
    for name, facts in outputs:
        if facts["maximum"] is None and not facts["empty"]:
            raise SourceError(
                "original-not-finite",
                f"the original's output {name!r} holds no finite value",
                why=f"every value is -inf, in all {survey['samples']:,} evaluation samples",
                hint="run the model on one sample before the build; is a mask all false?",
            )
    constant = [name for name, facts in outputs if facts["constant"]]
    if constant and len(constant) == len(outputs) and not trial:
        why = f"{survey['samples']:,} samples, one answer"
        if constant[1:]:
            why += f"; the same holds for {', '.join(constant[1:])}"
        raise SourceError(
            "original-constant",
            f"the original's output {constant[0]!r} is the same for every evaluation sample",
            why=why,
            hint="a constant answer proves nothing: check the loaded weights, the normalisation "
            "of the inputs, and that the samples differ",
        )
    warnings = []
    for name in constant:
        warnings.append(
            f"the original's output {name!r} is the same for every evaluation sample: nothing is "
            "proved about how it depends on the inputs"
        )
    return tuple(warnings)


def _merge_shapes(before: list[int | None], now: list[int | None]) -> list[int | None]:
    """Return a shape with None for the sizes that differ; the later one for another rank.

    [16, 24, 8] and [7, 24, 8] give [None, 24, 8].
    """
    merged = list(now)
    if len(before) == len(now):
        for axis, size in enumerate(before):
            if size != now[axis]:
                merged[axis] = None
    return merged


def _split_samples(array: np.ndarray, count: int) -> np.ndarray:
    """Return answers with samples along axis 0; an output without a batch axis is one answer."""
    if array.ndim and len(array) == count:
        return array
    return array[None]


def _require_numbers(name: str, array: np.ndarray, start: int, count: int) -> None:
    """Refuse NaN and +inf. -inf is legitimate: masked scores, the logarithm of 0."""
    if array.dtype.kind != "f":
        return
    wrong = np.isnan(array) | np.isposinf(array)
    if not wrong.any():
        return
    # The sample within the batch, and the indices of the value within the sample's answer.
    position = np.argwhere(_split_samples(wrong, count))[0].tolist()
    value = "NaN" if np.isnan(array[wrong][0]) else "inf"
    number = int(np.count_nonzero(wrong))
    raise SourceError(
        "original-not-finite",
        f"the original's output {name!r} is {value} in evaluation sample {start + position[0]}, "
        "counted from 0",
        why=f"the value at {tuple(position[1:])} is {value}; {number:,} of {array.size:,} values "
        "of this batch are NaN or inf",
        hint="look for a division by zero, the logarithm or root of a negative number, or an "
        "overflow: in the weights, or on inputs of another normalisation",
    )
