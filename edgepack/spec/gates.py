"""Gates of quality: those of the target, the manifest and the command line, merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgepack.errors import SpecError
from edgepack.runtime.bundle.index import GATES
from edgepack.runtime.parity.accuracy import TOP
from edgepack.spec.manifest import Manifest
from edgepack.spec.suggestions import nearest
from edgepack.spec.target import Target

# Gates with a lower bound, so that --strict takes the larger of two.
MINIMA = ("snr_db", "cosine", "agreement", "metric_ratio")

METRIC_BOUNDS = ("max_drop", "ratio", "min", "max")
"""Bounds on a metric, which the gate's text names before a dot."""


def parse_gates(texts: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Parse gates; return those of quality, and the bounds of each metric.

    "snr_db=25" and "f1.max_drop=1" give ({"snr_db": 25}, {"f1": {"max_drop": 1}}).

    Raises SpecError `gate-invalid` or `gate-repeated`.
    """
    quality: dict[str, float] = {}
    metrics: dict[str, dict[str, float]] = {}
    for text in texts:
        name, _equals, number = text.partition("=")
        bound = _read_bound(text, number)
        metric, dot, gate = name.rpartition(".")
        table, allowed = quality, GATES["quality"]
        if dot:
            table, allowed = metrics.setdefault(metric, {}), METRIC_BOUNDS
        if gate not in allowed or (dot and not metric):
            raise _make_unknown(text, gate or name, allowed)
        if gate in table:
            raise _make_repeated(name, table[gate], bound)
        table[gate] = bound
    return quality, metrics


def _read_bound(text: str, number: str) -> float:
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise _make_invalid(text, f"{number!r} is not a number")
    return bound


def _make_unknown(text: str, gate: str, allowed: Sequence[str]) -> SpecError:
    why = f"{gate!r} is none of {', '.join(allowed)}"
    near = nearest(gate, allowed)
    if near:
        why += f"; did you mean {near}?"
    elif gate.isidentifier() and "." not in text.partition("=")[0]:
        # "f1=0.8" may be a ratio as well as a minimum.
        bounds = ", ".join(f"{gate}.{bound}" for bound in METRIC_BOUNDS)
        why += f"; the bounds of a metric are {bounds}"
    return _make_invalid(text, why)


def _make_invalid(text: str, why: str) -> SpecError:
    return SpecError(
        "gate-invalid",
        f"the gate {text!r} is not valid",
        why=why,
        hint="for example --gate f1.max_drop=1, --gate top1.min=0.9 or --gate snr_db=25",
    )


@dataclass(frozen=True)
class Gates:
    """Gates of a build.

    Attributes:
        quality: gates of quality; `max_drop` and `metric_ratio` are those of the primary metric.
        explicit: names of the gates of quality that the user set.
        metrics: by metric, the other bounds.
        default_metrics: the metrics of a build that names none, if a gate names the default one.
    """

    quality: Mapping[str, float]
    explicit: frozenset[str]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    default_metrics: tuple[str, ...] = ()


def merge_gates(
    target: Target,
    manifest: Manifest,
    names: Sequence[str],
    texts: Sequence[str] = (),
    max_drop: float | None = None,
    strict: bool = False,
) -> Gates:
    """Merge the gates of the target, the manifest and the command line, the last with precedence.

    Args:
        target: the profile.
        manifest: the manifest.
        names: of the build's metrics, the primary one first; empty for the default.
        texts: the options --gate.
        max_drop: the option --max-drop; None for none.
        strict: True for the profile's stricter gates.

    Raises SpecError `gate-invalid`, `gate-repeated` or `gate-unmeasured`.
    """
    flags, flag_metrics = parse_gates(texts)
    if max_drop is not None:
        flags = _add(flags, "max_drop", max_drop)
    default = next(iter(TOP))
    primary = names[0] if names else default
    for metric in (*manifest.metric_gates, *flag_metrics):
        _require_measured(metric, names or (default,))
    quality = {**target.quality}
    user, named = _split_primary(primary, manifest.quality, manifest.metric_gates)
    _override(quality, user)
    explicit = set(user)
    if strict:
        for gate, bound in target.strict.items():
            # A manifest may be stricter: of snr_db 40 and 30, 40 stays.
            if gate in MINIMA and gate in quality:
                bound = max(bound, quality[gate])
            quality[gate] = bound
    user, flag_named = _split_primary(primary, flags, flag_metrics)
    if "max_drop" in user and "metric_ratio" not in user:
        # The same for a bound of the manifest: the command line overrides it.
        explicit.discard("metric_ratio")
    _override(quality, user)
    explicit |= set(user)
    metrics = {metric: {**bounds} for metric, bounds in named.items() if bounds}
    for metric, bounds in flag_named.items():
        if bounds:
            metrics[metric] = {**metrics.get(metric, {}), **bounds}
    requested = primary in manifest.metric_gates or primary in flag_metrics
    return Gates(
        quality, frozenset(explicit), metrics, (default,) if requested and not names else ()
    )


def _override(quality: dict[str, float], bounds: Mapping[str, float]) -> None:
    """Add bounds of the user's; a bound on the loss of the metric replaces MLPerf's ratio."""
    if "max_drop" in bounds and "metric_ratio" not in bounds:
        quality.pop("metric_ratio", None)
    quality.update(bounds)


def _split_primary(
    primary: str, quality: Mapping[str, float], metrics: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the gates of quality with those that name the primary metric, and all others.

    With the primary metric top1, ({}, {"top1": {"max_drop": 1, "min": 0.9}}) gives
    ({"max_drop": 1}, {"top1": {"min": 0.9}}).
    """
    merged, others = dict(quality), {}
    for metric, bounds in metrics.items():
        others[metric] = dict(bounds)
        if metric != primary:
            continue
        for bound, gate in (("max_drop", "max_drop"), ("ratio", "metric_ratio")):
            if bound in bounds:
                merged = _add(merged, gate, others[metric].pop(bound))
    return merged, others


def _add(gates: Mapping[str, float], gate: str, bound: float) -> dict[str, float]:
    if gate in gates:
        raise _make_repeated(gate, gates[gate], bound)
    return {**gates, gate: bound}


def _require_measured(metric: str, names: Sequence[str]) -> None:
    if metric not in names:
        raise SpecError(
            "gate-unmeasured",
            f"a gate bounds the metric {metric}, which is not measured",
            why=f"the metrics of this build: {', '.join(names)}",
            hint=f"add it: --metric {metric}, or a function of yours: --metric metrics.py:{metric}",
        )


def _make_repeated(name: str, first: float, second: float) -> SpecError:
    return SpecError(
        "gate-repeated",
        f"the gate {name} was requested twice",
        why=f"{first:g} and {second:g}",
        hint="remove one of them",
    )
