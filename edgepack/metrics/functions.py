"""A user's metric as a task metric: a function of a file, a callable, or one of torchmetrics."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from edgepack.data.python.function import FUNCTION, load_function
from edgepack.errors import DataError, MetricError
from edgepack.metrics.digest import digest_function
from edgepack.metrics.protocol import RESULTS, Metric, MetricSource, StreamedMetric, TaskMetric
from edgepack.runtime.parity.accuracy import TOP

_Measure = Callable[[object, object], float]


@dataclass(frozen=True)
class _UserMetric:
    """A user's function `(outputs, labels) -> float` as a metric."""

    name: str
    higher_is_better: bool
    function: _Measure

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        return self.function(outputs, labels)

    def compare(self, outputs: Sequence[np.ndarray], originals: Sequence[np.ndarray]) -> float:
        return self.function(outputs, originals)


@dataclass(frozen=True)
class _Streamed:
    """A metric in the form of torchmetrics: `update`, `compute` and `reset`."""

    name: str
    higher_is_better: bool
    metric: StreamedMetric

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        import torch

        # The collected arrays are read-only, and torch warns of tensors that share them.
        self.metric.reset()
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            answers = torch.from_numpy(np.array(outputs[0][rows]))
            self.metric.update(answers, torch.from_numpy(np.array(labels[rows])))
        value = self.metric.compute()
        self.metric.reset()
        return cast("float", value.item() if isinstance(value, torch.Tensor) else value)


# Samples of one update.
_BLOCK = 64


def name_metric(source: MetricSource) -> str:
    """Return the name by which gates and the report know a metric.

    "ece" for metrics.py:ece and for a function `ece`; the class's name for other objects.
    """
    if isinstance(source, str):
        match = FUNCTION.fullmatch(source)
        return match["name"] if match else source
    name = getattr(source, "name", "") or getattr(source, "__name__", "")
    return name if isinstance(name, str) and name else type(source).__name__


def load_user_metric(source: MetricSource, folders: Sequence[Path], decoded: bool) -> TaskMetric:
    """Return a user's function or object as a task metric.

    Args:
        source: "package.module:function", "file.py:function", a function `(outputs, labels)`, or
            an object with `compute(outputs, labels)` or in the form of torchmetrics.
        folders: import path of the function's module; relative paths start from the first.
        decoded: True if a postprocess decodes the outputs; the function gets its results.

    Raises MetricError: `metric-import`, `metric-direction` or `metric-name`.
    """
    name, origin = name_metric(source), str(source)
    value: object = source
    if isinstance(source, str):
        value = _import(source, folders)
    else:
        origin = name
    if name in TOP:
        raise MetricError(
            "metric-name",
            f"the metric {origin} has the name of a metric of edgepack",
            why=f"the loader counts {name} itself",
            hint="rename the function",
        )
    higher_is_better = getattr(value, "higher_is_better", None)
    if not isinstance(higher_is_better, bool):
        # No default: a gate in the wrong direction would pass a model that has collapsed.
        hint = f"set it below the function: {name}.higher_is_better = False"
        if not name.isidentifier():
            hint = "give the function a name with def, and set NAME.higher_is_better = False"
        raise MetricError(
            "metric-direction",
            f"the metric {origin} does not state whether higher is better",
            why=f"it has no attribute higher_is_better that is True or False: {higher_is_better!r}",
            hint=hint,
        )
    against = getattr(value, "against_original", False) is True
    return TaskMetric(
        _adapt(name, higher_is_better, value),
        name,
        origin,
        _digest(source, value),
        against_original=against,
        takes=RESULTS if decoded else "outputs",
    )


def _adapt(name: str, higher_is_better: bool, value: object) -> Metric:
    if hasattr(value, "update") and hasattr(value, "compute") and hasattr(value, "reset"):
        return _Streamed(name, higher_is_better, cast("StreamedMetric", value))
    compute = getattr(value, "compute", value)
    if not callable(compute):
        raise MetricError(
            "metric-import",
            f"the metric {name} cannot be called",
            why=f"it is {type(value).__name__}",
            hint="pass a function (outputs, labels), or an object with compute(outputs, labels)",
        )
    return _UserMetric(name, higher_is_better, cast("_Measure", compute))


def _import(text: str, folders: Sequence[Path]) -> object:
    try:
        return load_function(text, folders)
    except DataError as error:
        raise MetricError(
            "metric-import",
            f"the metric {text} cannot be imported",
            why=f"{error.what}: {error.why}" if error.why else error.what,
            hint="use package.module:function with the package installed, "
            "or path/to/file.py:function",
        ) from error


def _digest(source: MetricSource, value: object) -> str:
    """Return the digest of a metric's code; one that no other build has for a live object."""
    if isinstance(source, str) and callable(value):
        return digest_function(value)
    # The state of an object, and the variables around a function, are in no file.
    return uuid.uuid4().hex
