"""Samples for calibration and evaluation, as a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Batch:
    """What is fed to the model in one call.

    Attributes:
        inputs: one array per input of the model, each of the input's rank and dtype, ready to
            be fed as it is.
        labels: the labels of its samples (samples along axis 0), where there are any.
        count: number of samples in the batch.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    count: int


class Samples(Protocol):
    """A source of samples that can be read any number of times, in bounded memory."""

    @property
    def origin(self) -> str:
        """Where they come from, in words, for the report."""

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples from the first, at most `size` of them in a batch.

        Batches hold one sample each where the model's batch axis is fixed to 1 or an input has
        no batch axis. Raises DataError where a sample does not fit the model's inputs.
        """
