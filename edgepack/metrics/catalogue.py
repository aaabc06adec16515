"""Find task metrics: edgepack's own by name, a plug-in's, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from edgepack import plugins
from edgepack.errors import SpecError, missing_package
from edgepack.metrics.classes import (
    CLASS_METRICS,
    COUNTED,
    AgreementMetric,
    MatchMetric,
    OutputMetric,
)
from edgepack.metrics.detection import BoxMetric
from edgepack.metrics.functions import load_user_metric, name_metric
from edgepack.metrics.protocol import (
    NUMBERS,
    OUTPUTS,
    RESULTS,
    Metric,
    MetricSource,
    TaskMetric,
)
from edgepack.metrics.texts import TEXT_METRICS, TextMetric
from edgepack.metrics.values import VALUE_METRICS, ValueMetric
from edgepack.plugins import Plugin, is_callable
from edgepack.runtime.parity.accuracy import TOP
from edgepack.runtime.tensor import Tensor
from edgepack.spec.suggestions import nearest

BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *(*CLASS_METRICS, AgreementMetric()),
        *VALUE_METRICS,
        *(cast("Metric", BoxMetric()), *TEXT_METRICS),
    )
}
"""Metrics that are computed on the build host; the loader itself counts top1 and top5."""

# Package and module that a metric needs.
_PACKAGES = {
    "auroc": ("scikit-learn", "sklearn"),
    "map": ("pycocotools", "pycocotools"),
    "cer": ("jiwer", "jiwer"),
    "wer": ("jiwer", "jiwer"),
}
# Without labels, these compare with the original's answers, which they rate 1.
_UNLABELLED = ("cosine", "pearson", "spearman", "agreement")


def list_names() -> tuple[str, ...]:
    """Return the names of all metrics: edgepack's, then those of plug-ins."""
    return (*TOP, *BUILT_IN, *_list_plugins())


def check_metric(source: MetricSource) -> None:
    """Refuse the name of a metric that does not exist; functions are imported later.

    Raises SpecError `metric-unknown`, HostError `package-missing` for a metric whose package is
    not installed, and PluginError for a name of a plug-in that is taken.
    """
    if not isinstance(source, str) or not source or ":" in source:
        return
    # A plug-in with the name of another metric is refused even if that metric is meant.
    names = list_names()
    if source not in names:
        near = nearest(source, names)
        hint = "name a function of your own as --metric metrics.py:FUNCTION"
        if near:
            hint = f"did you mean {near}? {hint}"
        raise SpecError(
            "metric-unknown",
            f"there is no metric named {source!r}",
            why=f"the metrics: {', '.join(names)}",
            hint=hint,
        )
    # Before the build, since a metric is computed only after the original has run.
    if source in _PACKAGES:
        package, module = _PACKAGES[source]
        if find_spec(module) is None:
            raise missing_package(package, "metrics", f"the metric {source}")


def check_metrics(sources: Sequence[MetricSource]) -> None:
    """Check all metrics of a build, as `check_metric` does.

    Raises also SpecError `metric-repeated`, since gates and the report know metrics by name.
    """
    names = set()
    for source in sources:
        check_metric(source)
        name = name_metric(source)
        if name in names:
            raise SpecError(
                "metric-repeated",
                f"two metrics have the name {name}",
                why="gates and the report know a metric by its name",
                hint="remove one of them, or rename the function",
            )
        names.add(name)


def load_metrics(
    sources: Sequence[MetricSource],
    folders: Sequence[Path],
    outputs: Sequence[Tensor],
    *,
    labelled: bool = True,
    decoded: bool = False,
    class_names: Sequence[str] = (),
) -> tuple[TaskMetric, ...]:
    """Return the metrics that are computed on the build host, in order.

    The loader counts the first metric itself if it is top1 or top5; it is left out.

    Args:
        sources: the metrics of the build; the first is the primary one.
        folders: import path of the modules of functions; relative paths start from the first.
        outputs: of the model, of which kind and axis are known.
        labelled: True if the evaluation samples have labels.
        decoded: True if a postprocess decodes the outputs.
        class_names: names of the classes, for texts without a postprocess.

    Raises:
        SpecError: `metric-unknown`, `metric-repeated`, `metric-needs-labels` or
            `metric-needs-texts`.
        HostError: `package-missing`.
        MetricError: `metric-import`, `metric-direction` or `metric-name`.
        PluginError: a plug-in is broken or invalid.
    """
    check_metrics(sources)
    tasks = []
    for position, source in enumerate(sources):
        # An object may compare equal to any text: those of torchmetrics return a new metric.
        if position == 0 and isinstance(source, str) and source in ("", *TOP):
            continue
        task = load_metric(source, folders, outputs, decoded, class_names)
        if not labelled:
            task = _compare_with_original(task)
        tasks.append(task)
    return tuple(tasks)


def _compare_with_original(task: TaskMetric) -> TaskMetric:
    """Return a metric for samples without labels. Raises SpecError `metric-needs-labels`."""
    if task.against_original:
        return task
    if task.name in _UNLABELLED and not task.origin:
        return replace(task, against_original=True)
    raise SpecError(
        "metric-needs-labels",
        f"{task.name} was requested, but cannot be measured",
        why="the evaluation samples have no labels",
        hint="store the labels under `labels` in the evaluation .npz; without labels, "
        f"{', '.join(_UNLABELLED)} compare with the original",
    )


def load_metric(
    source: MetricSource,
    folders: Sequence[Path],
    outputs: Sequence[Tensor],
    decoded: bool = False,
    class_names: Sequence[str] = (),
) -> TaskMetric:
    """Return one metric; see `load_metrics`."""
    if not isinstance(source, str) or ":" in source:
        return load_user_metric(source, folders, decoded)
    check_metric(source)
    plugin = _list_plugins().get(source)
    if plugin is not None:
        metric = cast("Metric", plugin.load(_members(plugin)))
        takes = RESULTS if decoded else OUTPUTS
        digest = plugin.digest()
        return TaskMetric(metric, source, f"the plug-in {plugin}", digest, plugin, takes=takes)
    metric = COUNTED[source] if source in COUNTED else BUILT_IN[source]
    if isinstance(metric, (BoxMetric, TextMetric)):
        return _load_decoded(metric, decoded, class_names)
    # Decoded results are compared with their labels as they are, without classes.
    if source == "accuracy" and decoded:
        return TaskMetric(cast("Metric", MatchMetric()), source, takes=RESULTS)
    if isinstance(metric, ValueMetric):
        return TaskMetric(metric, source, takes=NUMBERS)
    if isinstance(metric, OutputMetric):
        metric = metric.bind(outputs)
    return TaskMetric(metric, source, against_original=source == "agreement")


def _load_decoded(
    metric: BoxMetric | TextMetric, decoded: bool, class_names: Sequence[str]
) -> TaskMetric:
    """Return a metric of boxes or texts. Raises SpecError `metric-needs-postprocess`."""
    if decoded:
        return TaskMetric(cast("Metric", metric), metric.name, takes=RESULTS)
    # Scores of CTC need no postprocess: the class names are the letters.
    if isinstance(metric, TextMetric) and class_names:
        return TaskMetric(cast("Metric", replace(metric, names=tuple(class_names))), metric.name)
    results = "dicts of boxes, scores and labels"
    if isinstance(metric, TextMetric):
        results = "texts"
    raise SpecError(
        "metric-needs-postprocess",
        f"the metric {metric.name} needs decoded outputs",
        why=f"it judges {results}, and a model's outputs are arrays",
        hint='name a function in the manifest that decodes them: postprocess = "file.py:function"',
    )


def _list_plugins() -> Mapping[str, Plugin]:
    return plugins.list_plugins(plugins.METRICS, (*TOP, *BUILT_IN))


def _members(plugin: Plugin) -> Mapping[str, Callable[[object], bool]]:
    return {
        "name": lambda name: name == plugin.name,
        "higher_is_better": lambda value: isinstance(value, bool),
        "compute": is_callable,
    }
