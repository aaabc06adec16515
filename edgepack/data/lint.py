"""What is wrong or suspicious about samples, found before hours are spent on them.

One pass over each set. Memory is that of a few samples, and 8 bytes for each sample's digest.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgepack.data.fit import check_dtype, check_feed, check_labels, check_names
from edgepack.data.moments import Moments, Statistics
from edgepack.data.samples import Samples
from edgepack.data.stream import Piece, SampleStream, add_array, pieces_of
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

FEW = 100
"""Calibration samples below which a warning is given: the peers' own advice is 100 to 500."""

SPREAD_RATIO = 4.0
"""Ratio of the two sets' standard deviations from which one seems to be scaled otherwise.
Pixels of 0..255 against 0..1 give 255, against -1..1 128, against unit variance about 60."""

MEAN_SHIFT = 3.0
"""Distance of the two sets' means, in the larger standard deviation, that is suspicious."""

MAX_SHARED = 0.01
"""Share of the evaluation samples that may also be training samples: real collections repeat a
few, and a set that was not split shares nearly all."""

_ROWS = 16
"""Samples read at once."""


@dataclass(frozen=True)
class LintReport:
    """What was found.

    Attributes:
        counts: number of samples, by set ("calibration", "evaluation", "training").
        digests: SHA-256 over names, types, shapes and content of all arrays, labels included,
            in order; by set. It does not depend on how the samples are stored in files.
        statistics: by set and input.
        warnings: what the user should look at, whole sentences.
        notes: what was done to make the samples fit, whole sentences.
    """

    counts: Mapping[str, int]
    digests: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Statistics]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As the ledger holds it."""
        return asdict(self)


def lint(
    calibration: Samples | None,
    evaluation: Samples | None,
    inputs: tuple[Tensor, ...],
    *,
    training: Samples | None = None,
) -> LintReport:
    """Look through every set once.

    Args:
        calibration: what the model is calibrated on.
        evaluation: what it is judged on; None where that is the calibration set.
        inputs: the model's inputs.
        training: what it is trained on.

    Raises:
        DataError: samples do not fit the inputs, are not finite, or there are none;
            `samples-training-judges` where the model would be judged on what trained it.
    """
    given = {"calibration": calibration, "evaluation": evaluation, "training": training}
    sets = {
        role: _survey(samples, inputs, role)
        for role, samples in given.items()
        if samples is not None
    }
    warnings = [warning for survey in sets.values() for warning in survey.warnings(inputs)]
    judging = sets.get("evaluation") or sets.get("calibration")
    for survey in sets.values():
        if judging is not None and survey is not judging:
            warnings += _between(survey, judging)
    return LintReport(
        counts={role: survey.count for role, survey in sets.items()},
        digests={role: survey.digest.hexdigest() for role, survey in sets.items()},
        statistics={
            role: {name: moments.statistics() for name, moments in survey.moments.items()}
            for role, survey in sets.items()
        },
        warnings=tuple(warnings),
        notes=tuple(note for survey in sets.values() for note in survey.notes),
    )


@dataclass
class _Survey:
    """One pass over one set."""

    role: str
    count: int = 0
    left_over: int = 0
    exact: int | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    prints: array[int] = field(default_factory=lambda: array("Q"))
    moments: dict[str, Moments] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def print_array(self) -> np.ndarray:
        """The first 8 bytes of each sample's digest, as uint64."""
        return np.frombuffer(self.prints, np.uint64)

    def warnings(self, inputs: tuple[Tensor, ...]) -> Iterator[str]:
        """What this set by itself gives reason to warn of."""
        if self.role == "calibration" and self.count < FEW:
            yield (
                f"There are only {self.count} calibration samples; fewer than {FEW} seldom show "
                "the ranges that activations reach."
            )
        if self.left_over:
            yield (
                f"{self.left_over} {self.role} sample(s) at the end are left out: the model takes "
                f"exactly {self.exact} at a time."
            )
        if repeated := self.count - len(np.unique(self.print_array())):
            yield f"{repeated} of {self.count} {self.role} samples repeat an earlier one."
        for tensor in inputs:
            found = self.moments[tensor.name]
            if not found.count:
                yield f"{tensor.name} is empty in every {self.role} sample: its values are unseen"
            elif found.minimum == found.maximum:
                yield (f"{tensor.name} is {found.minimum:g} everywhere in the {self.role} samples.")
            elif np.dtype(tensor.dtype).kind == "f" and found.whole and found.maximum > 1:
                yield (
                    f"All values of {tensor.name} in the {self.role} samples are whole numbers, "
                    f"{found.minimum:g} to {found.maximum:g}: they look like raw data that were "
                    "not normalised. Right only if the model does that itself."
                )


def _survey(samples: Samples, inputs: tuple[Tensor, ...], role: str) -> _Survey:
    survey = _Survey(role, moments={tensor.name: Moments() for tensor in inputs})
    labelled: bool | None = None
    divisible = 0
    for piece in pieces_of(samples, _ROWS):
        where = f"{role} sample {survey.count}"  # counted from 0, as array[i] is
        if labelled not in (None, piece.labels is not None):
            raise DataError(
                "samples-labels-count",
                f"some of the {role} samples have a label and some have none",
                why=f"it changes at {where}",
                hint="label all samples or none",
            )
        labelled = piece.labels is not None
        _check(piece, inputs, where)
        _check_finite(piece, role, survey.count)
        for tensor in inputs:
            survey.moments[tensor.name].add(piece.inputs[tensor.name])
        for index in range(piece.count):
            _digest(survey, piece, inputs, index)
        survey.count += piece.count
        divisible += piece.count if piece.divisible else 0
    if isinstance(samples, SampleStream):
        survey.notes, survey.exact = samples.notes, samples.exact
        survey.left_over = divisible % samples.exact if samples.exact else 0
    if survey.count == survey.left_over:
        raise DataError(
            "samples-empty",
            f"there is no {role} sample to feed",
            why=f"{samples.origin} gives {survey.count}"
            + (f", and the model takes {survey.exact} at a time" if survey.exact else ""),
            hint="give more samples, or export the model with a dynamic batch"
            if survey.exact
            else "check what the source yields",
        )
    return survey


def _check(piece: Piece, inputs: tuple[Tensor, ...], where: str) -> None:
    check_names(piece.inputs, inputs, where)
    for tensor in inputs:
        check_dtype(piece.inputs[tensor.name].dtype, tensor, where)
    shapes = {name: values.shape for name, values in piece.inputs.items()}
    check_feed(shapes, inputs, where, any_batch=piece.divisible)
    if piece.labels is not None:
        check_labels(piece.labels, piece.count, where)


def _check_finite(piece: Piece, role: str, start: int) -> None:
    for name, values in piece.inputs.items():
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        sample, inner = (place[0], place[1:]) if piece.divisible else (0, place)
        raise DataError(
            "samples-not-finite",
            f"{name} is not finite in {role} sample {start + sample}, counted from 0",
            why=f"the value at {inner} is {values[place]}",
            hint="look at how the samples are made: a division by a zero spread, a log of 0",
        )


def _digest(survey: _Survey, piece: Piece, inputs: tuple[Tensor, ...], index: int) -> None:
    """Add one sample to the set's digest, and its print to those that find duplicates."""
    sample = hashlib.sha256()
    for tensor in inputs:
        values = piece.inputs[tensor.name]
        add_array(sample, tensor.name, values[index] if piece.divisible else values)
    survey.digest.update(sample.digest())
    survey.prints.append(int.from_bytes(sample.digest()[:8], "little"))
    if piece.labels is not None:
        add_array(survey.digest, "labels", piece.labels[index])


def _between(survey: _Survey, judging: _Survey) -> Iterator[str]:
    """What a set together with the one that judges gives reason to warn of."""
    shared = int(np.isin(judging.print_array(), survey.print_array()).sum())
    if survey.role == "training":
        if shared > MAX_SHARED * judging.count:
            raise _judged_by_training(shared, judging)
        if shared:
            yield (
                f"{shared} of {judging.count} {judging.role} samples are training samples too: "
                "the trained model knows their answers."
            )
    elif shared:
        yield (
            f"{shared} sample(s) are in both sets: evaluation then flatters what was calibrated."
        )
    for name, moments in survey.moments.items():
        ours, theirs = moments.statistics(), judging.moments[name].statistics()
        small, large = sorted((ours.std, theirs.std))
        # A constant has no spread to compare, and has been warned of.
        if small == 0:
            continue
        shift = abs(ours.mean - theirs.mean)
        if large > SPREAD_RATIO * small or shift > MEAN_SHIFT * large:
            yield (
                f"{name} is in another range for {survey.role} ({ours.minimum:g} to "
                f"{ours.maximum:g}, mean {ours.mean:.3g}) than for {judging.role} "
                f"({theirs.minimum:g} to {theirs.maximum:g}, mean {theirs.mean:.3g}): "
                "was one of them normalised otherwise?"
            )


def _judged_by_training(shared: int, judging: _Survey) -> DataError:
    alone = judging.role == "evaluation"
    return DataError(
        "samples-training-judges",
        "the model would be judged on what it was trained on",
        why=f"{shared} of {judging.count} {judging.role} samples are also in the training set"
        + ("" if alone else ", and without evaluation samples they judge the model"),
        hint="split the samples: those of --evaluation must not be among those of --training"
        if alone
        else "--evaluation PATH with samples that the training does not see",
    )
