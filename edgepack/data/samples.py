"""Samples for calibration and evaluation, as a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Feed of one call of the model, with its labels.

    Attributes:
        inputs: one array per input of the model, of the input's rank and dtype.
        labels: labels of the samples along axis 0; None for unlabelled samples.
        count: number of samples in the batch.
        raw: the raw sample of each, such as the contents of a JPEG; None for samples that are
            arrays.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    count: int
    raw: Sequence[bytes] | None = None


class Samples(Protocol):
    """A source of samples that can be read any number of times, in bounded memory."""

    @property
    def origin(self) -> str:
        """Describe the source for the report."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over all samples from the first, at most `size` per batch.

        Batches hold one sample each if the model's batch axis is fixed to 1 or an input has no
        batch axis. Raises DataError if a sample does not fit the model's inputs.
        """
