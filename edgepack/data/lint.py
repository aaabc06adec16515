"""Checks for wrong or suspicious samples, before a build spends hours on them.

Each set is read once. Memory holds a few samples, and 8 bytes for each sample's digest.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from edgepack.data.fit import check_dtype, check_feed, check_labels, check_names, shapes_of
from edgepack.data.moments import Moments, Statistics
from edgepack.data.samples import Samples
from edgepack.data.stream import Piece, SampleStream, add_array, pieces_of
from edgepack.errors import DataError
from edgepack.runtime.tensor import Tensor

# Fewer calibration samples give a warning; other toolchains recommend 100 to 500.
FEW = 100

# Ratio of two sets' standard deviations above which one seems to be scaled differently. Pixels of
# 0..255 against 0..1 give 255, against -1..1 128, against unit variance about 60.
SPREAD_RATIO = 4.0

# Distance of two sets' means, in units of the larger standard deviation, that is suspicious.
MEAN_SHIFT = 3.0

# Share of the evaluation samples that may also be training samples: real collections repeat a few,
# and a set that was never split shares nearly all.
MAX_SHARED = 0.01

# Samples per read.
_ROWS = 16


@dataclass(frozen=True)
class LintReport:
    """Result of `lint`.

    Attributes:
        counts: number of samples, by set ("calibration", "evaluation", "training").
        digests: SHA-256 over names, types, shapes and content of all arrays, labels included,
            in order; by set. It does not depend on the files that hold the samples.
        statistics: statistics of each input's values, by set and input.
        warnings: suspicious properties of the samples, in sentences.
        notes: conversions that made the samples fit, in sentences.
    """

    counts: Mapping[str, int]
    digests: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Statistics]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return JSON values for the ledger."""
        return asdict(self)


def lint(
    calibration: Samples | None,
    evaluation: Samples | None,
    inputs: tuple[Tensor, ...],
    *,
    training: Samples | None = None,
) -> LintReport:
    """Read every set once and check it.

    Args:
        calibration: calibration samples.
        evaluation: evaluation samples; None to evaluate on the calibration samples.
        inputs: the model's inputs.
        training: training samples.

    Raises:
        DataError: samples do not fit the inputs, are not finite, or there are none;
            `samples-training-judges` if the model would be evaluated on training samples.
    """
    roles = {"calibration": calibration, "evaluation": evaluation, "training": training}
    surveys: dict[str, _Survey] = {}
    for role, samples in roles.items():
        if samples is not None:
            surveys[role] = _survey(samples, inputs, role)
    counts: dict[str, int] = {}
    digests: dict[str, str] = {}
    statistics: dict[str, Mapping[str, Statistics]] = {}
    warnings: list[str] = []
    notes: list[str] = []
    for role, survey in surveys.items():
        counts[role] = survey.count
        digests[role] = survey.digest.hexdigest()
        statistics[role] = survey.statistics()
        warnings += survey.warnings(inputs)
        notes += survey.notes
    evaluated = surveys.get("evaluation") or surveys.get("calibration")
    # Only the samples that judge the model need labels.
    if evaluated is not None and evaluated.unlabelled:
        warnings.append(evaluated.unlabelled)
    for survey in surveys.values():
        if evaluated is not None and survey is not evaluated:
            warnings += _compare(survey, evaluated)
    return LintReport(counts, digests, statistics, tuple(warnings), tuple(dict.fromkeys(notes)))


@dataclass
class _Survey:
    """Result of reading one set.

    Attributes:
        role: "calibration", "evaluation" or "training".
        count: number of samples.
        dropped: number of samples at the end that do not fill a batch.
        exact: number of samples in every batch; None for a dynamic batch axis.
        digest: SHA-256 over all samples and labels.
        fingerprints: first 8 bytes of each sample's digest.
        moments: running statistics by input.
        notes: conversions that made the samples fit, in sentences.
        constants: inputs that may be the same in every sample.
        unlabelled: a sentence that says where labels may be, for samples without any; else empty.
    """

    role: str
    count: int = 0
    dropped: int = 0
    exact: int | None = None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    fingerprints: array[int] = field(default_factory=lambda: array("Q"))
    moments: dict[str, Moments] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    constants: frozenset[str] = frozenset()
    unlabelled: str = ""

    def fingerprint_array(self) -> np.ndarray:
        """Return the first 8 bytes of each sample's digest, as uint64."""
        return np.frombuffer(self.fingerprints, np.uint64)

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics of each input's values."""
        return {name: moments.statistics() for name, moments in self.moments.items()}

    def warnings(self, inputs: tuple[Tensor, ...]) -> Iterator[str]:
        """Yield the warnings that concern this set alone."""
        if self.role == "calibration" and self.count < FEW:
            yield (
                f"{self.count} calibration samples; at least {FEW} are recommended to estimate "
                "activation ranges"
            )
        if self.dropped:
            yield (
                f"{self.dropped} {self.role} sample(s) at the end are dropped: the model takes "
                f"exactly {self.exact} at a time"
            )
        # Copies add no range to the calibration, and count twice in the evaluation.
        if repeated := self.count - len(np.unique(self.fingerprint_array())):
            yield f"{repeated} of {self.count} {self.role} samples repeat an earlier one"
        for tensor in inputs:
            values = self.moments[tensor.name]
            if not values.count:
                yield f"{tensor.name} is empty in every {self.role} sample; its range is unknown"
            elif values.minimum == values.maximum:
                if tensor.name in self.constants:
                    continue
                yield f"{tensor.name} is {values.minimum:g} everywhere in the {self.role} samples"
            # Pixels of 0 to 255 in a float input are the usual mistake; a mask of 0 and 1 is none.
            elif np.dtype(tensor.dtype).kind == "f" and values.integral and values.maximum > 1:
                yield (
                    f"all values of {tensor.name} in the {self.role} samples are whole numbers, "
                    f"{values.minimum:g} to {values.maximum:g}: raw data, which is correct only "
                    "if the model normalises its input"
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
                why=f"this changes at {where}",
                hint="label all samples or none",
            )
        labelled = piece.labels is not None
        _check(piece, inputs, where)
        _check_finite(piece, role, survey.count)
        for tensor in inputs:
            survey.moments[tensor.name].add(piece.inputs[tensor.name])
        for index in range(piece.count):
            _add_digest(survey, piece, inputs, index)
        survey.count += piece.count
        if piece.divisible:
            divisible += piece.count
    if isinstance(samples, SampleStream):
        survey.notes, survey.exact = samples.notes, samples.exact
        survey.constants, survey.unlabelled = samples.constants, samples.unlabelled
        if samples.exact:
            # Complete feeds are never dropped: only divisible pieces are gathered into batches.
            survey.dropped = divisible % samples.exact
    _require_batch(survey, samples.origin)
    return survey


def _require_batch(survey: _Survey, origin: str) -> None:
    """Refuse a set that does not fill a single batch."""
    if survey.count > survey.dropped:
        return
    fault = f"there are no {survey.role} samples to feed"
    if survey.exact:
        raise DataError(
            "samples-empty",
            fault,
            why=f"{origin} has {survey.count}, and the model takes {survey.exact} at a time",
            hint="provide more samples, or export the model with a dynamic batch",
        )
    raise DataError(
        "samples-empty",
        fault,
        why=f"{origin} has {survey.count}",
        hint="check that the source yields samples",
    )


def _check(piece: Piece, inputs: tuple[Tensor, ...], where: str) -> None:
    check_names(piece.inputs, inputs, where)
    for tensor in inputs:
        check_dtype(piece.inputs[tensor.name].dtype, tensor, where)
    check_feed(shapes_of(piece.inputs), inputs, where, any_batch=piece.divisible)
    if piece.labels is not None:
        check_labels(piece.labels, piece.count, where)


def _check_finite(piece: Piece, role: str, start: int) -> None:
    for name, values in piece.inputs.items():
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        position = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        sample, inner = (position[0], position[1:]) if piece.divisible else (0, position)
        raise DataError(
            "samples-not-finite",
            f"{name} is not finite in {role} sample {start + sample}, counted from 0",
            why=f"the value at {inner} is {values[position]}",
            hint="check the preparation of the samples for a division by a zero standard "
            "deviation or a log of 0",
        )


def _add_digest(survey: _Survey, piece: Piece, inputs: tuple[Tensor, ...], index: int) -> None:
    """Add one sample to the set's digest, and its fingerprint to the set's fingerprints."""
    # Fingerprints leave labels out: the same picture with two labels is a duplicate. With 64 bits
    # the chance that two of a million different samples collide is 3e-8.
    sample = hashlib.sha256()
    for tensor in inputs:
        values = piece.inputs[tensor.name]
        add_array(sample, tensor.name, values[index] if piece.divisible else values)
    survey.digest.update(sample.digest())
    survey.fingerprints.append(int.from_bytes(sample.digest()[:8], "little"))
    if piece.labels is not None:
        add_array(survey.digest, "labels", piece.labels[index])


def _compare(survey: _Survey, evaluated: _Survey) -> Iterator[str]:
    """Yield the warnings that concern a set together with the one that the model is evaluated on.

    Raises DataError `samples-training-judges`.
    """
    shared = int(np.isin(evaluated.fingerprint_array(), survey.fingerprint_array()).sum())
    if survey.role == "training":
        if shared > MAX_SHARED * evaluated.count:
            raise _evaluated_on_training(shared, evaluated)
        if shared:
            yield (
                f"{shared} of {evaluated.count} {evaluated.role} samples are also training "
                "samples, which makes the measured quality optimistic"
            )
    elif shared:
        yield (
            f"{shared} sample(s) are in both sets: quality measured on calibration samples is "
            "optimistic"
        )
    for name, ours in survey.statistics().items():
        theirs = evaluated.moments[name].statistics()
        small, large = sorted((ours.std, theirs.std))
        # A constant has no spread to compare, and has its own warning.
        if small == 0:
            continue
        # Pixels of 0..255 (mean 120, std 60) against 0..1 (mean 0.47, std 0.24): the ratio of the
        # standard deviations is 255, above SPREAD_RATIO.
        shift = abs(ours.mean - theirs.mean)
        if large > SPREAD_RATIO * small or shift > MEAN_SHIFT * large:
            yield (
                f"{name} has another range for {survey.role} ({ours.minimum:g} to "
                f"{ours.maximum:g}, mean {ours.mean:.3g}) than for {evaluated.role} "
                f"({theirs.minimum:g} to {theirs.maximum:g}, mean {theirs.mean:.3g}): "
                "check that both are normalised alike"
            )


def _evaluated_on_training(shared: int, evaluated: _Survey) -> DataError:
    what = "the model would be evaluated on its training samples"
    why = f"{shared} of {evaluated.count} {evaluated.role} samples are also in the training set"
    if evaluated.role == "evaluation":
        return DataError(
            "samples-training-judges",
            what,
            why=why,
            hint="split the samples: those of --evaluation must not be among those of --training",
        )
    return DataError(
        "samples-training-judges",
        what,
        why=f"{why}, and without evaluation samples they measure the model's quality",
        hint="--evaluation PATH with samples that are not in the training set",
    )
