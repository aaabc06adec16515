"""Task metrics among the measurements of a model."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.runtime.documents import Measurement, MetricResult


def list_metrics(measurement: Measurement) -> list[MetricResult]:
    """Return all task metrics of a measurement, the primary one first."""
    first = measurement["metric"]
    metrics = [] if first is None else [first]
    return [*metrics, *measurement.get("further_metrics", ())]


def add_metrics(
    measurement: Measurement, results: Sequence[MetricResult], *, counted: bool
) -> None:
    """Add the metrics of the build host to a measurement.

    Args:
        measurement: of the outputs; with the primary metric if the loader counted it.
        results: of the build host, in order.
        counted: True if the loader counts the primary metric, so that all of these are further.
    """
    further = list(results)
    if not counted:
        measurement["metric"] = further.pop(0) if further else None
    if further:
        measurement["further_metrics"] = further
