"""Auction of a build: what the report says of it, and that a repeated build decides alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.report import render_html, render_terminal
from support.build_cases import Answer, Home, build, digest_of, render_text


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("auction") / "tiny.edgepack"


@pytest.fixture(scope="module")
def first(home: Home, output: Path) -> Answer:
    return build(home.build("tiny.onnx", "--latency", "smoke"), output)


def test_the_report_names_every_candidate_and_why_it_lost(first: Answer) -> None:
    auction = first.document["auction"]
    candidates = {entry["name"]: entry for entry in auction["candidates"]}
    assert {"fp32 in onnxruntime", "int8 in onnxruntime"} <= candidates.keys()
    winner = candidates.pop(auction["winner"])
    assert winner["reason"] == ""
    assert winner["judged"]
    assert all(entry["reason"] for entry in candidates.values())
    assert first.document["target"]["precision"] == winner["form"]
    assert first.document["sizes"]["model_bytes"] == winner["bytes"]
    # Without a request no form is slower or larger than fp32.
    fp32 = {**candidates, winner["name"]: winner}["fp32 in onnxruntime"]
    assert winner["bytes"] <= fp32["bytes"]
    assert winner["cost"] <= fp32["cost"] * (1 + auction["noise"])
    for text in (render_text(render_terminal, first.document), render_html(first.document)):
        assert auction["objective"] in text
        assert "wins" in text


def test_the_row_of_what_ships_has_the_speed_that_bench_measured(first: Answer) -> None:
    stages = [record["stage"] for record in first.document["ledger"] if record.get("measured")]
    assert stages[-1] == "auction"
    text = render_html(first.document)
    ratio = first.document["latency"]["ratio"]
    assert f"{ratio:.2f}×" in text or f"about {ratio:.1f}×" in text


def test_a_second_build_takes_the_decision_from_the_cache(
    first: Answer, home: Home, output: Path
) -> None:
    digest = digest_of(output)
    again = build(home.build("tiny.onnx", "--latency", "smoke"), output)
    assert again.stage("auction")["status"] == "cached"
    assert digest_of(output) == digest
    entries = again.document["auction"]["candidates"]
    assert entries == first.document["auction"]["candidates"]


def test_without_an_auction_the_chain_decides(home: Home, tmp_path: Path) -> None:
    answer = build(home.build("tiny.onnx", "--optimize", "none"), tmp_path / "x.edgepack")
    assert answer.stage("auction")["notes"] == ["--optimize none"]
    assert answer.stage("auction")["status"] == "skipped"
    assert answer.document["target"]["precision"] == "int8"
    assert "auction" not in answer.document
