"""Whole builds without samples: on inputs that are generated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.build_cases import Home, ask, build, entry


@pytest.mark.parametrize("chain", ["quantize:mode=dynamic", "none"])
def test_a_chain_that_needs_no_samples_builds_without_and_proves_nothing(
    home: Home, tmp_path: Path, chain: str
) -> None:
    output = tmp_path / "x.edgepack"
    options = ("--chain", chain, "--allow-unverified")
    answer = build(home.build("tiny.onnx", *options, calibration=""), output)
    report = answer.document
    assert report["verdict"] == "UNVERIFIED"
    assert "--evaluation PATH" in answer.stderr
    assert report["samples"]["calibration"] is None
    assert report["samples"]["evaluation"]["count"] == 32
    assert any("nothing is verified" in warning for warning in report["warnings"])
    # Decisions about noise are not judged.
    assert {gate["name"] for gate in report["quality"]["gates"]} == {"snr_db", "worst_db"}
    record = next(r for r in report["ledger"] if r["stage"] == "samples")
    assert record["notes"][0].startswith("generated image (batch, 1, 16, 16): normal values")
    index = json.loads(entry(output, "bundle.json"))
    assert index["provenance"]["proven"] is False


def test_another_chain_without_samples_names_those_that_need_none(
    home: Home, tmp_path: Path
) -> None:
    answer = ask(*home.build("tiny.onnx", "--output", str(tmp_path / "x"), calibration=""))
    assert (answer.status, answer.code) == (2, "samples-missing")
    assert "quantize:mode=dynamic" in answer.document["error"]["hint"]


def test_a_dry_run_announces_generated_inputs(home: Home) -> None:
    arguments = ["--chain", "quantize:mode=weights:bits=4", "--dry-run"]
    answer = ask(*home.build("tiny.onnx", *arguments, calibration=""))
    assert (answer.status, answer.document["generated"]) == (0, True)
    assert answer.document["missing"] == []
    assert ask(*home.build("tiny.onnx", *arguments)).document["generated"] is False
