"""One command for several targets, and bundles that are at the default path already."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.cli.several import spread_output
from edgepack.errors import SpecError
from edgepack.report.targets import TargetRow, render_targets
from edgepack.request import Flags, resolve
from edgepack.spec import target
from edgepack.spec.manifest import Manifest
from support.build_cases import Answer, Home, ask, entry, render_text

SHARED = ["source", "samples", "original"]
# A profile whose gate no int8 can hold.
UNREACHABLE = """
extends = "cpu-fbgemm"
schema = 1
name = "unreachable"
[chain]
default = "quantize:repair=false"
[gates.quality]
snr_db = 300
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture(scope="module")
def answer(home: Home, folder: Path) -> Answer:
    """Two targets that pass, one that misses its gates, and one whose output is taken."""
    (folder / "unreachable.toml").write_text(UNREACHABLE)
    (folder / "tiny-server.edgepack").write_text("notes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        more = ["--target", "laptop", "--target", "unreachable.toml", "--target", "server"]
        return ask(*home.build("tiny.onnx", *more))


def test_each_target_gets_a_bundle_and_the_exit_code_is_the_worst(
    answer: Answer, folder: Path
) -> None:
    first, second, missed, taken = answer.document
    assert answer.status == 2
    assert [report["target"]["name"] for report in answer.document] == [
        "cpu-fbgemm", "laptop", "unreachable", "server",
    ]  # fmt: skip
    assert [first["verdict"], second["verdict"]] == ["PASS", "PASS"]
    assert [missed["error"]["code"], taken["error"]["code"]] == ["gate-missed", "output-exists"]
    bundles = {path.name for path in folder.glob("*.edgepack")}
    assert bundles == {
        "tiny-cpu-fbgemm.edgepack", "tiny-laptop.edgepack", "tiny-unreachable.rejected.edgepack",
        "tiny-server.edgepack",
    }  # fmt: skip
    assert (folder / "tiny-server.edgepack").read_text() == "notes"
    # Nothing was written over, and errors did not keep the next target from its build.
    assert answer.stderr.count("error[") == 2


def test_targets_share_the_stages_before_their_own(
    answer: Answer, built: Path, folder: Path
) -> None:
    ledgers = []
    for report in answer.document[:2]:
        ledgers.append({record["stage"]: record for record in report["ledger"]})
    assert all(ledgers[1][stage]["status"] == "cached" for stage in SHARED)
    assert ledgers[1]["source"]["notes"] == ledgers[0]["source"]["notes"]
    assert answer.document[1]["warnings"] == answer.document[0]["warnings"]
    # As a build of its own makes it.
    model = entry(folder / "tiny-laptop.edgepack", "model/model.onnx")
    assert model == entry(built, "model/model.onnx")


def test_the_table_has_a_row_for_each(answer: Answer) -> None:
    long = Path("a" * 150) / "tiny-laptop.edgepack"
    rows = [
        TargetRow("laptop", answer.document[1], long),
        TargetRow("server", None, None, "output-exists"),
    ]
    lines = render_text(render_targets, rows).splitlines()
    assert lines[0].split() == ["target", "verdict", "size", "ratio", "latency", "path"]
    assert lines[1].split()[:2] == ["laptop", "PASS"]
    assert lines[1].endswith(str(long))
    assert lines[2].split()[1:] == ["could", "not", "run", "error[output-exists]"]


def test_the_same_content_replaces_a_bundle_and_other_content_only_by_force(
    home: Home, answer: Answer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert answer.document[0]["verdict"] == "PASS"
    again = ask(*home.build("tiny.onnx"))
    assert (again.status, again.document["verdict"]) == (0, "PASS")
    other = ask(*home.build("tiny.onnx", "--chain", "none"))
    assert (other.status, other.code) == (2, "output-exists")
    assert other.document["error"]["why"].endswith("another chain")
    # Before the hours of a build.
    assert "export" not in other.stderr
    # A path that the user states is the user's word.
    profile = target.load("cpu-fbgemm")
    for flags in (Flags(force=True), Flags(output=Path("x.edgepack"))):
        assert resolve(Path("tiny.onnx"), profile, Manifest(), flags).overwrite
    assert not resolve(Path("tiny.onnx"), profile, Manifest(), Flags()).overwrite


def test_an_output_for_several_targets_is_a_folder_or_a_pattern(tmp_path: Path) -> None:
    targets = ("laptop", "thor")
    assert spread_output(None, targets) is None
    assert spread_output(Path("x.edgepack"), ("thor",)) == Path("x.edgepack")
    assert spread_output(Path("out"), targets) == Path("out/{name}-{target}.edgepack")
    pattern = Path("{target}/{name}.edgepack")
    assert spread_output(pattern, targets) == pattern
    with pytest.raises(SpecError) as caught:
        spread_output(Path("x.edgepack"), targets)
    assert caught.value.code == "output-shared"
    assert "--output '{name}-{target}.edgepack'" in caught.value.hint
    with pytest.raises(SpecError) as caught:
        spread_output(None, ("thor", "thor"))
    assert caught.value.code == "target-twice"


def test_a_dry_run_of_several_targets_is_a_list(home: Home, tmp_path: Path) -> None:
    arguments = home.build("tiny.onnx", "--target", "laptop", "--dry-run")
    plans = ask(*arguments, "--output", str(tmp_path / "{target}.edgepack")).document
    assert [Path(plan["output"]).name for plan in plans] == [
        "cpu-fbgemm.edgepack", "laptop.edgepack",
    ]  # fmt: skip
