"""Answers of a model to a whole evaluation set, as its outputs and decoded by a postprocess."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgepack.metrics.collect import Collector
from edgepack.metrics.postprocess import Postprocess
from edgepack.metrics.protocol import NUMBERS, RESULTS

Batches = Callable[[], Iterator[tuple[list[np.ndarray], int]]]


class Answers:
    """Answers to all samples of an evaluation set.

    Args:
        outputs: per output of the model, an array with the samples along axis 0.
        batches: iterates over the outputs of each batch, with its number of samples.
        postprocess: decodes the outputs; None if the model's outputs are the answers.
    """

    def __init__(
        self,
        outputs: Sequence[np.ndarray],
        batches: Batches | None = None,
        postprocess: Postprocess | None = None,
    ) -> None:
        self.outputs = outputs
        self._batches, self._postprocess = batches, postprocess
        self._results: list[object] | None = None

    def select(self, takes: str) -> Sequence[np.ndarray] | list[object]:
        """Return the answers in a form of `TaskMetric.takes`. Raises as `Postprocess.decode`."""
        if self._postprocess is None or takes not in (NUMBERS, RESULTS):
            return self.outputs
        results = self._decode(self._postprocess)
        if takes == RESULTS:
            return results
        array = stack_numbers(results)
        return self.outputs if array is None else [array]

    def _decode(self, postprocess: Postprocess) -> list[object]:
        # All metrics share the results, which may take as long as the model's own answers.
        if self._results is None:
            self._results = []
            batches = self._batches() if self._batches else iter([(list(self.outputs), -1)])
            for outputs, count in batches:
                self._results += postprocess.decode(outputs, count)
        return self._results


def collect_answers(collector: Collector, postprocess: Postprocess | None) -> Answers:
    """Return collected answers, which are decoded when a metric needs the results."""
    return Answers(collector.arrays(), collector.batches, postprocess)


def stack_numbers(results: Sequence[object]) -> np.ndarray | None:
    """Return results as one array if they are numbers, or arrays of one shape; None otherwise.

    [0.5, 0.7] gives an array of shape (2,), and 20 embeddings of 384 values one of (20, 384).
    """
    rows = []
    for result in results:
        if not isinstance(result, (int, float, np.ndarray, np.generic)):
            return None
        rows.append(np.asarray(result))
    shapes = {row.shape for row in rows}
    if len(shapes) != 1 or any(row.dtype.kind not in "biuf" for row in rows):
        return None
    return np.stack(rows)
