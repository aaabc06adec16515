"""Comparison of two bundles, row by row, with what counts as a regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from edgepack import bundle
from edgepack.bundle import Admitted
from edgepack.comparison.layers import list_layer_rows
from edgepack.comparison.rows import Row
from edgepack.comparison.timing import Latency, measure
from edgepack.device import Local
from edgepack.errors import SpecError
from edgepack.metrics.results import list_metrics
from edgepack.report import validate
from edgepack.report.documents import Report
from edgepack.report.figures import (
    format_bytes,
    format_decibel,
    format_ms,
    format_number,
    format_percent,
    is_share,
)
from edgepack.report.findings import list_questions
from edgepack.report.gates import format_gate
from edgepack.runtime.device.machine import describe
from edgepack.runtime.documents import Gate, MetricResult
from edgepack.runtime.parity.verdict import FAIL, PASS, UNVERIFIED

FORMAT = "edgepack-comparison/1"
# From the best to the worst.
_VERDICTS = (PASS, UNVERIFIED, FAIL)


@dataclass(frozen=True)
class Tolerances:
    """Changes that are not a regression.

    Attributes:
        latency: slow-down as a share: 0.1 is 10 %.
        size: growth as a share.
        quality: loss in points of the metric, of the agreement without one, and in dB of the SNR
            without either.
    """

    latency: float = 0.10
    size: float = 0.01
    quality: float = 0.5


@dataclass(frozen=True)
class Side:
    """One of the two bundles.

    Attributes:
        bundle: the bundle.
        report: the report of its build.
    """

    bundle: Admitted
    report: Report

    def to_json(self) -> dict[str, object]:
        """Return the bundle's identity as JSON values."""
        index = self.bundle.index
        return {
            "path": str(self.bundle.path),
            "name": index.name,
            "target": index.target,
            "content_digest": index.content_digest,
            "sha256": self.bundle.sha256,
            "verdict": self.report["verdict"],
        }


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        old: the old bundle.
        new: the new one.
        rows: what was compared.
        notes: what limits the comparison.
        latency: latencies by turns; None if they were not measured.
        tolerances: changes that are not a regression.
    """

    old: Mapping[str, object]
    new: Mapping[str, object]
    rows: Sequence[Row]
    notes: Sequence[str]
    latency: Latency | None
    tolerances: Tolerances = field(default_factory=Tolerances)

    @property
    def regressions(self) -> list[Row]:
        """Return the rows that regressed beyond their tolerance."""
        return [row for row in self.rows if row.regressed]

    def to_json(self) -> dict[str, object]:
        """Return the comparison as JSON values."""
        return {
            "format": FORMAT,
            "old": dict(self.old),
            "new": dict(self.new),
            "passed": not self.regressions,
            "regressions": [row.describe() for row in self.regressions],
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
            "latency": self.latency.to_json() if self.latency else None,
            "tolerances": {
                "latency": self.tolerances.latency,
                "size": self.tolerances.size,
                "quality": self.tolerances.quality,
            },
        }


def compare(
    old: Path, new: Path, tolerances: Tolerances | None = None, *, threads: int = 0,
    timed: bool = True,
) -> Comparison:  # fmt: skip
    """Compare two bundles of one model for one target.

    Args:
        old: path of the bundle to compare with.
        new: path of the bundle that replaces it.
        tolerances: changes that are not a regression; None for the defaults.
        threads: threads within an operator; 0 takes every physical core.
        timed: measure both latencies, by turns, if the bundles run on this machine.

    Raises SpecError if the two cannot replace each other, BundleError if one is not intact.
    """
    tolerances = tolerances or Tolerances()
    with bundle.admit(old) as before, bundle.admit(new) as after:
        sides = _read_side(before), _read_side(after)
        _require_same_use(before, after)
        notes = list(_list_notes(*sides))
        latency = None
        arch = before.index.device.get("arch")
        if timed and arch not in (None, "", describe()["arch"]):
            notes.append(f"latency not compared: the bundles are for {arch}")
        elif timed:
            with Local() as host:
                paths = host.put(before.path), host.put(after.path)
                latency = measure(*paths, host, threads, tolerances.latency)
    rows = [
        _compare_verdicts(*sides),
        *_compare_sizes(*sides, tolerances.size),
        *_compare_latency(latency, tolerances.latency),
        *_compare_quality(*sides, tolerances.quality),
        *_compare_gates(*sides),
        *list_layer_rows(sides[0].report, sides[1].report),
    ]
    if latency:
        notes += [f"latency disturbed: {reason}" for reason in latency.disturbed]
        if latency.is_inconclusive(tolerances.latency):
            notes.append(
                "latency inconclusive: the interval of the ratio contains the tolerance; "
                "compare on a quiet machine"
            )
    return Comparison(sides[0].to_json(), sides[1].to_json(), rows, notes, latency, tolerances)


def _read_side(admitted: Admitted) -> Side:
    return Side(admitted, validate(bundle.read_report(admitted.path)))


def _require_same_use(old: Admitted, new: Admitted) -> None:
    """Refuse two bundles that cannot replace each other. Raises SpecError."""
    if old.index.target != new.index.target:
        raise SpecError(
            "compare-targets",
            "the two bundles are for different targets",
            why=f"{old.path.name} is for {old.index.target}, {new.path.name} for "
            f"{new.index.target}",
            hint="build both for one target; `edgepack inspect` shows the report of each",
        )
    for name, before, after in (
        ("inputs", old.index.inputs, new.index.inputs),
        ("outputs", old.index.outputs, new.index.outputs),
    ):
        if _describe_tensors(before) != _describe_tensors(after):
            raise SpecError(
                "compare-tensors",
                f"the two bundles have different {name}",
                why=f"{old.path.name}: {_describe_tensors(before)}\n"
                f"{new.path.name}: {_describe_tensors(after)}",
                hint="compare two bundles of one model",
            )


def _describe_tensors(tensors: Sequence[object]) -> str:
    return ", ".join(map(str, tensors))


def _list_notes(old: Side, new: Side) -> Iterator[str]:
    """Yield what limits the comparison of the two reports."""
    digests = []
    for side in (old, new):
        samples = side.report["samples"]
        judged = samples.get("evaluation") or samples.get("calibration")
        digests.append(judged.get("digest") if judged else None)
    if digests[0] != digests[1]:
        yield "the two were judged on different samples: their quality is not strictly comparable"
    # The digest covers the code of the module, too; equal contents settle the matter.
    contents = {old.bundle.index.content_digest, new.bundle.index.content_digest}
    sources = {old.report["source"]["digest"], new.report["source"]["digest"]}
    if len(contents) > 1 and len(sources) > 1:
        yield "the two were built from different weights or code"


def _compare_verdicts(old: Side, new: Side) -> Row:
    before, after = old.report["verdict"], new.report["verdict"]
    # PASS, UNVERIFIED, FAIL: each is worse than the ones before it.
    worse = _VERDICTS.index(after) > _VERDICTS.index(before)
    return Row("verdict", "the build", before, after, "", worse)


def _compare_sizes(old: Side, new: Side, tolerance: float) -> Iterator[Row]:
    sizes = (
        ("model", old.report["sizes"]["model_bytes"], new.report["sizes"]["model_bytes"]),
        ("bundle file", old.bundle.size, new.bundle.size),
    )
    for name, before, after in sizes:
        # 3.40 MB to 3.52 MB is a growth of 0.035.
        growth = after / before - 1
        yield Row(
            "size", name, format_bytes(before), format_bytes(after), _format_growth(growth),
            growth > tolerance, values=(before, after),
        )  # fmt: skip


def _compare_latency(latency: Latency | None, tolerance: float) -> Iterator[Row]:
    if latency is None:
        return
    change = (
        f"{_format_growth(latency.ratio - 1)} ({_format_growth(latency.low - 1)} to "
        f"{_format_growth(latency.high - 1)})"
    )
    old, new = format_ms(latency.old), format_ms(latency.new)
    if latency.disturbed:
        old, new = f"about {old}", f"about {new}"
    slower = latency.exceeds(tolerance)
    yield Row("latency", "p50", old, new, change, slower, values=(latency.old, latency.new))


def _format_growth(growth: float) -> str:
    sign = "+"
    if growth < 0:
        sign = "−"
    return f"{sign}{format_percent(abs(growth), 1)}"


def _compare_quality(old: Side, new: Side, tolerance: float) -> Iterator[Row]:
    """Yield a row for each metric, and for the agreement and the SNR of each output.

    The metrics that both reports have are held to the tolerance; without any, the agreement, and
    else the SNR.
    """
    before, after = old.report["quality"], new.report["quality"]
    judged = False
    metrics = {metric["name"]: metric for metric in list_metrics(after)}
    for metric in list_metrics(before):
        if metric["name"] in metrics:
            judged = True
            yield _compare_metrics(metric, metrics[metric["name"]], tolerance)
    for output in before["outputs"]:
        pair = before["outputs"][output], after["outputs"][output]
        shares = pair[0].get("top1_agreement"), pair[1].get("top1_agreement")
        agrees = shares[0] is not None and shares[1] is not None
        if agrees:
            # From 99.2 % to 98.7 % of equal decisions 0.5 points are lost.
            lost = 100 * (cast("float", shares[0]) - cast("float", shares[1]))
            texts = [format_percent(cast("float", share), 2) for share in shares]
            yield Row(
                "agreement", output, texts[0], texts[1], _format_points(-lost),
                not judged and lost > tolerance, values=shares,
            )  # fmt: skip
        ratios = pair[0]["snr_db"], pair[1]["snr_db"]
        yield _compare_snr(output, ratios, tolerance, not judged and not agrees)


def _compare_metrics(old: MetricResult, new: MetricResult, tolerance: float) -> Row:
    """Compare a metric: a share by points, any other value by per cent of itself."""
    change = new["model"] - old["model"]
    loss = -change
    # An error, such as an RMSE, is worse if it grows.
    if not new.get("higher_is_better", True):
        loss = change
    if is_share(old) and is_share(new):
        texts = [format_percent(metric["model"], 2) for metric in (old, new)]
        worse = 100 * loss > tolerance
        text = _format_points(100 * change)
    else:
        texts = [format_number(metric["model"]) for metric in (old, new)]
        worse = 100 * loss > tolerance * abs(old["model"])
        text = _format_growth(change / abs(old["model"])) if old["model"] else ""
    values = (old["model"], new["model"])
    return Row("metric", old["name"], texts[0], texts[1], text, worse, values=values)


def _format_points(points: float) -> str:
    sign = "+"
    if points < 0:
        sign = "−"
    return f"{sign}{abs(points):.2f} points"


def _compare_snr(
    output: str, ratios: tuple[float | None, float | None], tolerance: float, judged: bool
) -> Row:
    """Compare the SNR of an output; None is exact."""
    old, new = ratios
    texts = ["exact" if ratio is None else format_decibel(ratio) for ratio in ratios]
    # From 34.1 to 32.9 dB, 1.2 dB are lost; from exact to any number it is always worse.
    change, worse = "", old is None and new is not None
    if old is not None and new is not None:
        sign = "−" if new < old else "+"
        change = f"{sign}{format_decibel(abs(new - old))}"
        worse = old - new > tolerance
    return Row("SNR", output, texts[0], texts[1], change, judged and worse, values=ratios)


def _compare_gates(old: Side, new: Side) -> Iterator[Row]:
    """Yield a row for every gate that either of the two has, and the other does not meet alike."""
    gates = _list_gates(old.report), _list_gates(new.report)
    for name in dict.fromkeys((*gates[0], *gates[1])):
        before, after = gates[0].get(name), gates[1].get(name)
        texts = [_format_gate(gate) for gate in (before, after)]
        # A gate that the old bundle missed already is no regression; one that is gone is.
        missed = after is not None and not after["passed"]
        met = before is None or before["passed"]
        dropped = before is not None and after is None
        held = met and not missed and before is not None and not dropped
        change = "no longer gated" if dropped else ""
        if before and after and before["bound"] != after["bound"]:
            change = "another bound"
        regressed = (missed and met) or dropped
        yield Row("gate", name, texts[0], texts[1], change, regressed, held=held)


def _list_gates(report: Report) -> dict[str, Gate]:
    gates = {}
    for name, question in list_questions(report):
        for gate in question["gates"]:
            gates[f"{name}: {format_gate(gate).title}"] = gate
    return gates


def _format_gate(gate: Gate | None) -> str:
    if gate is None:
        return "–"
    row = format_gate(gate)
    mark = "✓" if row.passed else "✗"
    return f"{mark} {row.measured} ({row.bound})"
