"""A task metric: the mean score of the labelled class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class LabelScore:
    """Mean of the exponential of the labelled class's score."""

    name = "label-score"
    higher_is_better = True

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        """Return the mean over the samples; outputs[0] holds scores of shape (samples, classes)."""
        scores = np.take_along_axis(outputs[0], labels[:, None], axis=1)
        return float(np.exp(scores).mean())


LABEL_SCORE = LabelScore()
