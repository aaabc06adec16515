"""Every pass of a chain answers for what it changed: size, arithmetic, latency, quality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.report.passes import tabulate_passes
from support.build_cases import Answer, Home, ask, build, entry

pytest.importorskip("torch_pruning")

ROOMY = "schema = 1\n[gates.quality]\nsnr_db = -20\nmetric_ratio = 0.0\n"


@pytest.fixture(scope="module")
def chained(torch_home: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, Path]:
    """`tiny` pruned and quantized, with its latency."""
    folder = tmp_path_factory.mktemp("chained")
    (folder / "m.toml").write_text(ROOMY)
    arguments = torch_home.build(
        "tiny.pt", "--arch", torch_home / "nets.py:tiny", "--manifest", str(folder / "m.toml"),
        "--training", torch_home / "calibration.npz",
        "--evaluation", torch_home / "evaluation.npz",
        "--chain", "prune:structured=0.4:importance=l1:round_to=1,quantize",
    )  # fmt: skip
    smoke = [a if a != "none" else "smoke" for a in arguments]
    return build(smoke, folder / "x.edgepack"), folder / "x.edgepack"


def test_the_original_and_every_pass_are_measured_and_nothing_else(
    chained: tuple[Answer, Path],
) -> None:
    answer, _ = chained
    rows = [record for record in answer.document["ledger"] if record["measured"]]
    assert [record["stage"] for record in rows] == ["simplify", "prune", "quantize", "auction"]
    for record in rows:
        measured = record["measured"]
        assert measured["quality"]["samples"] == 40
        assert measured["quality"]["metric"]["name"] == "top1"
        assert measured["missed"] == []
        assert measured["latency"]["queries"] >= 3
    original = rows[0]["measured"]
    assert original["change"] is None
    assert original["latency"]["ratio"] == 1
    assert original["quality"]["metric"]["model"] == original["quality"]["metric"]["original"]


def test_a_change_is_the_difference_to_the_pass_before(chained: tuple[Answer, Path]) -> None:
    answer, _ = chained
    before, pruned, quantized = (answer.stage(name) for name in ("simplify", "prune", "quantize"))
    for now, last in ((pruned, before), (quantized, pruned)):
        new, old, change = now["measured"], last["measured"], now["measured"]["change"]
        for key in ("bytes", "parameters"):
            assert change[key] == now[key] - last[key]
        assert change["macs"] == new["macs"] - old["macs"]
        points = new["quality"]["metric"]["model"] - old["quality"]["metric"]["model"]
        assert change["metric_points"] == pytest.approx(100 * points)
        (after,), (prior,) = (m["quality"]["outputs"].values() for m in (new, old))
        assert change["snr_db"] == pytest.approx(after["snr_db"] - prior["snr_db"])
        ratio = old["latency"]["ratio"] / new["latency"]["ratio"]
        assert change["latency"] == pytest.approx(ratio - 1)
    # Pruning took out as many multiplications as torch counts; quantization none.
    figures = pruned["details"]["structured"]
    assert before["measured"]["macs"] == figures["macs"][0]
    assert pruned["measured"]["macs"] == figures["macs"][1] < figures["macs"][0]
    assert quantized["measured"]["change"]["macs"] == 0


def test_the_last_row_is_what_the_shipped_loader_found(chained: tuple[Answer, Path]) -> None:
    answer, output = chained
    shipped, here = answer.document["quality"], answer.stage("quantize")["measured"]["quality"]
    assert here["metric"] == shipped["metric"]
    # The loader sums in batches of another size, so that the last bit may differ.
    (found,), (expected,) = here["outputs"].values(), shipped["outputs"].values()
    assert found == {**expected, "cosine": pytest.approx(expected["cosine"], rel=1e-12)}
    table = tabulate_passes(json.loads(entry(output, "report/report.json")))
    assert table is not None
    assert [row.name for row in table.rows] == ["original", "prune", "quantize", "auction"]
    assert list(table.columns.values()) == ["Size", "Parameters", "MACs", "Speed", "Top-1", "SNR"]


def test_what_a_pass_before_lost_is_laid_at_it(torch_home: Home, tmp_path: Path) -> None:
    """No layer that goes back to float wins it back, so none is searched for."""
    (tmp_path / "m.toml").write_text("schema = 1\n[gates.quality]\nsnr_db = 60\n")
    answer = ask(
        *torch_home.build(
            "tiny.pt", "--arch", torch_home / "nets.py:tiny",
            "--manifest", str(tmp_path / "m.toml"),
            "--training", torch_home / "calibration.npz",
            "--evaluation", torch_home / "evaluation.npz",
            "--chain", "prune:structured=0.4:importance=l1:round_to=1,quantize",
        ),
        "--output", str(tmp_path / "x.edgepack"),
    )  # fmt: skip
    assert (answer.status, answer.code) == (1, "gate-missed")
    error = answer.document["error"]
    assert "quality first dropped in the stage 'prune'" in error["why"]
    assert "The gates were missed before quantize, since prune" in error["why"]
    assert "--chain prune,distill" in error["hint"]
    inside = json.loads(entry(tmp_path / "x.rejected.edgepack", "report/report.json"))
    missed = {r["stage"]: bool(r["measured"]["missed"]) for r in inside["ledger"] if r["measured"]}
    assert missed == {"simplify": False, "prune": True, "quantize": True}


def test_a_graph_is_evaluated_once(
    torch_home: Home, chained: tuple[Answer, Path], tmp_path: Path
) -> None:
    """A rebuild finds the figures by the graph's digest; the latency is measured anew or not."""
    arguments = torch_home.build(
        "tiny.pt", "--arch", torch_home / "nets.py:tiny",
        "--evaluation", torch_home / "evaluation.npz", "--chain", "none",
    )  # fmt: skip
    first = build(arguments, tmp_path / "a.edgepack").stage("simplify")
    assert first["measured"]["quality"] == chained[0].stage("simplify")["measured"]["quality"]
    assert first["measured"]["latency"] is None


def test_without_labels_agreement_is_told(torch_home: Home, tmp_path: Path) -> None:
    arguments = torch_home.build(
        "tiny.onnx", "--evaluation", torch_home / "unlabelled.npz", "--chain", "none"
    )
    measured = build(arguments, tmp_path / "a.edgepack").stage("simplify")["measured"]
    assert measured["quality"]["metric"] is None
    (metrics,) = measured["quality"]["outputs"].values()
    assert metrics["top1_agreement"] == 1.0
