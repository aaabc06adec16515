"""Find a task metric by name: edgepack's own, a plug-in's, or a function of the user's."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from edgepack import plugins
from edgepack.data.function import load_function
from edgepack.errors import DataError, MetricError, SpecError
from edgepack.metrics.classes import CLASS_METRICS, ClassMetric
from edgepack.metrics.protocol import Metric, TaskMetric
from edgepack.metrics.values import VALUE_METRICS
from edgepack.plugins import Plugin, is_callable
from edgepack.runtime.parity.accuracy import TOP
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric for metric in (*VALUE_METRICS, *CLASS_METRICS)
}
"""Metrics that are computed on the build host; the loader itself counts top1 and top5."""


@dataclass(frozen=True)
class _UserMetric:
    """A user's function `(outputs, labels) -> float` as a metric."""

    name: str
    higher_is_better: bool
    function: Callable[[Sequence[np.ndarray], np.ndarray], float]

    def compute(self, outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
        return self.function(outputs, labels)


def list_names() -> tuple[str, ...]:
    """Return the names of all metrics: edgepack's, then those of plug-ins."""
    return (*TOP, *BUILT_IN, *_list_plugins())


def check_metric(text: str) -> None:
    """Refuse the name of a metric that does not exist; functions are imported later.

    Raises SpecError `metric-unknown`, and PluginError for a name of a plug-in that is taken.
    """
    if not text or ":" in text:
        return
    # A plug-in with the name of another metric is refused even if that metric is meant.
    names = list_names()
    if text not in names:
        near = nearest(text, names)
        hint = "name a function of your own as --metric metrics.py:FUNCTION"
        if near:
            hint = f"did you mean {near}? {hint}"
        raise SpecError(
            "metric-unknown",
            f"there is no metric named {text!r}",
            why=f"the metrics: {', '.join(names)}",
            hint=hint,
        )


def load_metric(text: str, folders: Sequence[Path], outputs: Sequence[Tensor]) -> TaskMetric | None:
    """Return the metric that is computed on the build host; None for one that the loader counts.

    Args:
        text: name of a metric, "package.module:function" or "file.py:function".
        folders: import path of the function's module; relative paths start from the first.
        outputs: of the model, of which kind and axis are known.

    Raises:
        SpecError: `metric-unknown`.
        MetricError: `metric-import`, `metric-direction` or `metric-name`.
        PluginError: the plug-in is broken or invalid.
    """
    if text in ("", *TOP):
        return None
    if ":" in text:
        return _load_function(text, folders)
    check_metric(text)
    plugin = _list_plugins().get(text)
    if plugin is not None:
        metric = cast("Metric", plugin.load(_members(plugin)))
        return TaskMetric(metric, text, f"the plug-in {plugin}", plugin.digest(), plugin)
    metric = BUILT_IN[text]
    if isinstance(metric, ClassMetric):
        metric = metric.bind(outputs)
    return TaskMetric(metric, text)


def _list_plugins() -> Mapping[str, Plugin]:
    return plugins.list_plugins(plugins.METRICS, (*TOP, *BUILT_IN))


def _members(plugin: Plugin) -> Mapping[str, Callable[[object], bool]]:
    return {
        "name": lambda name: name == plugin.name,
        "higher_is_better": lambda value: isinstance(value, bool),
        "compute": is_callable,
    }


def _load_function(text: str, folders: Sequence[Path]) -> TaskMetric:
    try:
        function = load_function(text, folders)
    except DataError as error:
        raise MetricError(
            "metric-import",
            f"the metric {text} cannot be imported",
            why=f"{error.what}: {error.why}" if error.why else error.what,
            hint="use package.module:function with the package installed, "
            "or path/to/file.py:function",
        ) from error
    name = text.rpartition(":")[2]
    if name in TOP:
        raise MetricError(
            "metric-name",
            f"the metric {text} has the name of a metric of edgepack",
            why=f"the loader counts {name} itself",
            hint="rename the function",
        )
    higher_is_better = getattr(function, "higher_is_better", None)
    if not isinstance(higher_is_better, bool):
        # No default: a gate in the wrong direction would pass a model that has collapsed.
        raise MetricError(
            "metric-direction",
            f"the metric {text} does not state whether higher is better",
            why=f"it has no attribute higher_is_better that is True or False: {higher_is_better!r}",
            hint=f"set it below the function: {name}.higher_is_better = False",
        )
    measure = cast("Callable[[Sequence[np.ndarray], np.ndarray], float]", function)
    metric = _UserMetric(name, higher_is_better, measure)
    return TaskMetric(metric, name, text, _digest_file(function))


def _digest_file(function: Callable[..., object]) -> str:
    """Return the SHA-256 of the file that defines a function; "" if it has none."""
    try:
        path = inspect.getsourcefile(function)
    except TypeError:
        path = None
    if path is None or not Path(path).is_file():
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
