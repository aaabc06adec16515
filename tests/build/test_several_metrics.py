"""Several metrics in one build: gates that name them, the report, and metrics without labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.report import render_terminal
from support.build_cases import Home, build, entry, render_text

ECE = """
import numpy as np


def spread(outputs, labels):
    return float(outputs[0].std())


spread.higher_is_better = False
"""


@pytest.fixture(scope="module")
def report_and_bundle(home: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("several")
    (folder / "metrics.py").write_text(ECE)
    (folder / "m.toml").write_text(
        "schema = 1\n[evaluation]\n"
        'metrics = ["top1", "f1", "auroc", "top5", "metrics.py:spread"]\n'
        "[gates.metrics.f1]\nmax_drop = 1.0\nmin = 0.8\n[gates.metrics.spread]\nmax = 1000.0\n"
    )
    output = folder / "x.edgepack"
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    arguments += ["--manifest", str(folder / "m.toml"), "--gate", "auroc.ratio=0.9"]
    return build(arguments, output).document, output


def test_all_metrics_are_measured_and_the_gates_name_theirs(
    report_and_bundle: tuple[dict, Path],
) -> None:
    report, output = report_and_bundle
    quality = report["quality"]
    assert quality["metric"]["name"] == "top1"
    further = {metric["name"]: metric for metric in quality["further_metrics"]}
    assert list(further) == ["f1", "auroc", "top5", "spread"]
    assert further["top5"]["original"] == 1.0
    gates = [
        (g["name"], g["output"]) for g in quality["gates"] if g["output"] in (*further, "top1")
    ]
    assert gates == [
        ("metric_ratio", "top1"),
        ("max_drop", "f1"),
        ("metric_min", "f1"),
        ("metric_ratio", "auroc"),
        ("metric_max", "spread"),
    ]
    index = json.loads(entry(output, "bundle.json"))
    assert (index["metric"], index["quality"]["further_metrics"]) == (
        "top1",
        quality["further_metrics"],
    )


def test_every_metric_is_in_the_chain_and_in_the_summary(
    report_and_bundle: tuple[dict, Path],
) -> None:
    report, _ = report_and_bundle
    (row,) = (record for record in report["ledger"] if record["stage"] == "quantize")
    assert row["measured"]["quality"]["further_metrics"] == report["quality"]["further_metrics"]
    text = " ".join(render_text(render_terminal, report).split())
    for part in ("100.0 % top-1", "f1 100.0 % (original:", "auroc", "spread"):
        assert part in text, part
