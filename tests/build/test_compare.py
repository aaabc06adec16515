"""`edgepack compare`: what counts as a regression of one bundle against another."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.comparison import Tolerances, render_comparison, timing
from edgepack.comparison import compare as run
from edgepack.comparison.timing import Latency, find_interval
from edgepack.device import Local
from edgepack.report import list_cautions
from support.build_cases import ask, entry, render_text
from support.bundle_cases import REPORT, reseal

Change = Callable[[dict[str, Any]], object]


def altered(bundle: Path, folder: Path, change: Change, name: str = "new.edgepack") -> Path:
    """Return the same bundle with another report, and the hashes that fit it."""
    report = json.loads(entry(bundle, REPORT))
    change(report)
    path = folder / name
    # Without spaces, as a build writes it: otherwise the file would grow by more than the change.
    text = json.dumps(report, separators=(",", ":"), ensure_ascii=False)
    reseal(bundle, path, {REPORT: text.encode()})
    return path


def test_a_bundle_does_not_regress_against_itself(built: Path) -> None:
    answer = ask("compare", str(built), str(built), "--latency", "none")
    assert answer.status == 0
    document = answer.document
    assert document["passed"]
    assert document["regressions"] == []
    kinds = [row["kind"] for row in document["rows"]]
    assert kinds[:3] == ["verdict", "size", "size"]
    assert {"metric", "agreement", "SNR", "gate"} <= set(kinds)
    assert all(row["old"] == row["new"] for row in document["rows"])


def drop_metric(report: dict[str, Any]) -> None:
    metric = report["quality"]["metric"]
    metric.update(model=metric["model"] - 0.02, drop_points=metric["drop_points"] + 2)


def grow(report: dict[str, Any]) -> None:
    sizes = report["sizes"]
    sizes["model_bytes"] = int(1.2 * sizes["model_bytes"])
    sizes["ratio"] = sizes["model_bytes"] / sizes["original_bytes"]
    report["cautions"] = list_cautions(report)  # type: ignore[arg-type]


def drop_gate(report: dict[str, Any]) -> None:
    report["quality"]["gates"] = [
        gate for gate in report["quality"]["gates"] if gate["name"] != "agreement"
    ]


def doubt(report: dict[str, Any]) -> None:
    reason = {"code": "random-samples", "text": "random"}
    report.update(verdict="UNVERIFIED", reasons=[reason])


@pytest.mark.parametrize(
    ("change", "regression", "tolerance"),
    [
        (drop_metric, "metric of top1: ", ("--quality-tolerance", "2.1")),
        (grow, "size of model: ", ("--size-tolerance", "21")),
        (drop_gate, "gate of quality: Top-1 agreement of scores: ", None),
        (doubt, "verdict of the build: PASS → UNVERIFIED", None),
    ],
)
def test_each_loss_beyond_its_tolerance_is_a_regression(
    built: Path, tmp_path: Path, change: Change, regression: str,
    tolerance: tuple[str, ...] | None,
) -> None:  # fmt: skip
    new = altered(built, tmp_path, change)
    # The report itself may be longer: as a share of so small a file that is much.
    options = ("--latency", "none", "--size-tolerance", "15")
    answer = ask("compare", str(built), str(new), *options)
    assert answer.status == 1
    (line,) = answer.document["regressions"]
    assert line.startswith(regression)
    result = run(built, new, Tolerances(size=0.15), timed=False)
    assert "✗ 1 regression" in render_text(render_comparison, result)
    if tolerance:
        assert ask("compare", str(built), str(new), *options, *tolerance).status == 0
    # In the other direction it is a gain.
    assert ask("compare", str(new), str(built), *options).status == 0


def test_layers_in_another_form_are_listed(built: Path, tmp_path: Path) -> None:
    def keep_float(report: dict[str, Any]) -> None:
        for record in report["ledger"]:
            if record["stage"] == "quantize":
                layer = {"name": "Conv_0", "operator": "Conv", "reason": "excluded"}
                record["details"].update(layers_float=[layer])

    answer = ask("compare", str(built), str(altered(built, tmp_path, keep_float)),
                 "--latency", "none")  # fmt: skip
    (row,) = [row for row in answer.document["rows"] if row["kind"] == "layer"]
    assert (row["name"], row["old"], row["new"]) == ("Conv_0", "int8", "float")
    assert answer.status == 0


def test_other_samples_are_noted(built: Path, tmp_path: Path) -> None:
    def judge_elsewhere(report: dict[str, Any]) -> None:
        report["samples"]["evaluation"]["digest"] = 64 * "0"

    new = altered(built, tmp_path, judge_elsewhere)
    (note,) = ask("compare", str(built), str(new), "--latency", "none").document["notes"]
    assert "judged on different samples" in note


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [("target", "cuda-fp16", "compare-targets"), ("outputs", None, "compare-tensors")],
)
def test_bundles_that_cannot_replace_each_other_are_refused(
    built: Path, tmp_path: Path, key: str, value: str | None, code: str
) -> None:
    index = json.loads(entry(built, "bundle.json"))
    other = copy.deepcopy(index)
    if value:
        other[key] = value
    else:
        other["outputs"][0]["shape"] = ["batch", 5]
    path = tmp_path / "other.edgepack"
    reseal(built, path, {}, index=other)
    answer = ask("compare", str(built), str(path), "--latency", "none")
    assert (answer.status, answer.code) == (2, code)


def test_a_slow_down_must_be_beyond_doubt() -> None:
    assert find_interval([1.0, 1.1, 1.2, 0.9, 1.3, 1.4, 1.5, 0.8, 0.7]) == (0.7, 1.5)
    # Of 27 rounds, 7 at each end are left out.
    assert find_interval([float(i) for i in range(27)]) == (7.0, 19.0)
    slow = Latency(1.0, 1.3, 1.3, 1.15, 1.4, (), ())
    assert slow.exceeds(0.1)
    assert not slow.exceeds(0.2)
    assert slow.is_inconclusive(0.2)


def test_two_bundles_are_measured_by_turns(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST", 2)
    monkeypatch.setattr(timing, "MOST", 2)
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    with Local() as host:
        found = timing.measure(str(built), str(built), host, 1, 0.1)
    assert len(found.rounds) == 2
    assert found.low <= found.ratio <= found.high
    assert found.low == pytest.approx(min(new / old for old, new in found.rounds))
