"""Division of one set of samples into calibration and evaluation samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgepack.data.layouts.picture_set import PictureSet
from edgepack.data.raw.prepare import read_file
from edgepack.data.stream import Piece, SampleStream, add_array
from edgepack.errors import DataError

# Samples per read.
_ROWS = 16


@dataclass(frozen=True)
class Split:
    """Share of the evaluation samples, and the seed of their choice.

    Attributes:
        share: of the samples, between 0 and 1.
        seed: another seed chooses other samples.
    """

    share: float
    seed: int = 0


@dataclass(frozen=True)
class Division:
    """Result of a split.

    Attributes:
        evaluation: True for each sample that is for evaluation.
        repeated: number of samples that are copies of an earlier one.
        classes: number of classes that both parts have in the same proportions; 0 without labels.
    """

    evaluation: np.ndarray
    repeated: int
    classes: int

    def indices(self, role: str) -> list[int]:
        """Return the positions of the samples for a role, in order."""
        chosen: list[int] = np.flatnonzero(self.evaluation == (role == "evaluation")).tolist()
        return chosen

    def describe(self, split: Split) -> str:
        """Return a sentence for the report."""
        count = int(self.evaluation.sum())
        text = (
            f"split by --split {split.share:g}, seed {split.seed}: "
            f"{len(self.evaluation) - count:,} calibration and {count:,} evaluation samples"
        )
        if self.classes:
            text += f", stratified by {self.classes} classes"
        if self.repeated:
            text += f"; {self.repeated} repeated sample(s) are in the part of their first copy"
        return text


def divide(
    digests: Sequence[bytes], labels: np.ndarray | None, split: Split, origin: str
) -> Division:
    """Choose the evaluation samples by their content, so that names and order do not matter.

    Samples of one digest stay in one part. With labels, each class gives its share.

    Args:
        digests: of the content of each sample.
        labels: class of each sample; None if they have none.
        split: share and seed.
        origin: source of the samples, for messages.

    Raises DataError `split-empty` if one of the parts would have no samples.
    """
    copies: dict[bytes, list[int]] = {}
    for index, digest in enumerate(digests):
        copies.setdefault(digest, []).append(index)
    classes = np.zeros(len(digests), np.int64) if labels is None else labels
    order: list[tuple[int, bytes, list[int]]] = []
    for digest, indices in copies.items():
        key = hashlib.sha256(b"%d:%s" % (split.seed, digest)).digest()
        order.append((int(classes[indices[0]]), key, indices))
    order.sort()
    # Samples in the order of class and hash; the share adds up until it makes one sample. For
    # 0.2: 0.2, 0.4, 0.6 is at least half a sample, so the third is taken, and -0.4 remains. A
    # class is off by one sample at most, as is the sum.
    evaluation = np.zeros(len(digests), bool)
    due = 0.0
    for _, _, indices in order:
        due += split.share * len(indices)
        if due >= len(indices) / 2:
            evaluation[indices] = True
            due -= len(indices)
    if evaluation.all() or not evaluation.any():
        raise DataError(
            "split-empty",
            f"{origin} cannot be split",
            why=f"of {len(copies)} different samples, a share of {split.share:g} leaves one part "
            "empty",
            hint="use more samples, or a share nearer to 0.5",
        )
    strata = 0 if labels is None else len(np.unique(labels))
    return Division(evaluation, len(digests) - len(copies), strata)


def divide_pictures(pictures: PictureSet, split: Split) -> Division:
    """Divide pictures by the content of their files. Raises DataError."""
    digests = []
    for path in pictures.paths:
        digests.append(hashlib.sha256(read_file(path)).digest())
    return divide(digests, pictures.classes, split, str(pictures.folder))


def divide_stream(stream: SampleStream, split: Split) -> Division:
    """Divide samples by their arrays, read once. Raises DataError."""
    digests: list[bytes] = []
    labels: list[np.ndarray] = []
    for piece in stream.pieces(_ROWS):
        digests += _digest_samples(piece)
        if piece.labels is not None:
            labels.append(np.asarray(piece.labels))
    return divide(digests, _join_classes(labels), split, stream.origin)


def _digest_samples(piece: Piece) -> Iterator[bytes]:
    for index in range(piece.count):
        digest = hashlib.sha256()
        for name in sorted(piece.inputs):
            values = piece.inputs[name]
            add_array(digest, name, values[index] if piece.divisible else values)
        yield digest.digest()


def _join_classes(labels: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the class of each sample; None if the labels are not one whole number each."""
    for values in labels:
        if values.ndim != 1 or values.dtype.kind not in "iub":
            return None
    return np.concatenate(labels) if labels else None


def select_stream(stream: SampleStream, evaluation: np.ndarray, role: str) -> SampleStream:
    """Return the samples of one part of a divided stream."""
    chosen = evaluation == (role == "evaluation")

    def pieces(size: int) -> Iterator[Piece]:
        start = 0
        for piece in stream.pieces(size):
            mask = chosen[start : start + piece.count]
            start += piece.count
            if mask.all():
                yield piece
            elif mask.any():
                yield piece.take(np.flatnonzero(mask).tolist())

    return replace(stream, pieces=pieces)
