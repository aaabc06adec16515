"""What a CI system reads of a command: JUnit's XML, a summary, annotations, the action."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from edgepack.cli.outputs import Outputs
from edgepack.report.checks import (
    Check,
    Checks,
    annotate,
    check_report,
    render_junit,
    render_summary,
)
from edgepack.runtime.streams import printable
from support import ROOT, report_cases
from support.build_cases import Home, ask

ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
UNREACHABLE = "schema = 1\n[gates.quality]\nsnr_db = 90\n"


def cases(path: Path) -> dict[str, ElementTree.Element]:
    """Return the test cases of a file by their names; the counts in it are right."""
    root = ElementTree.parse(path).getroot()
    found = {f"{case.get('classname')}: {case.get('name')}": case for case in root.iter("testcase")}
    for suite in (root, *root.iter("testsuite")):
        assert int(suite.get("tests", "")) == len(found)
        for tag, key in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.get(key, "")) == sum(c.find(tag) is not None for c in found.values())
    return found


def files(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    junit, summary = tmp_path / "j.xml", tmp_path / "s.md"
    return junit, summary, ["--junit", str(junit), "--summary", str(summary), "--format", "github"]


def test_a_verification_that_passes(built: Path, tmp_path: Path) -> None:
    junit, summary, options = files(tmp_path)
    summary.write_text("before\n")
    answer = ask("verify", str(built), *options)
    assert answer.status == 0
    assert answer.document["verdict"] == "PASS"
    found = cases(junit)
    assert "tiny for cpu-fbgemm.verdict on this machine: verdict" in found
    assert not [case for case in found.values() if len(case)]
    # What other commands of the step wrote stays.
    assert summary.read_text().startswith("before\n### ✅ PASS: tiny for cpu-fbgemm\n")
    assert "::error" not in answer.stderr


def test_a_build_that_misses_a_gate(home: Home, tmp_path: Path) -> None:
    junit, summary, options = files(tmp_path)
    manifest = tmp_path / "m.toml"
    manifest.write_text(UNREACHABLE)
    output = ["--manifest", str(manifest), "--output", str(tmp_path / "x.edgepack")]
    answer = ask(*home.build("tiny.onnx", *output, *options))
    assert answer.code == "gate-missed"
    found = cases(junit)
    (missed,) = [name for name, case in found.items() if case.find("failure") is not None
                 and "quality" in name]  # fmt: skip
    assert missed == "tiny for cpu-fbgemm.quality: SNR of scores"
    assert re.match(r"SNR of scores: \d\d\.\d dB \(≥ 90", found[missed][0].get("message", ""))
    assert "| ❌ | quality: SNR of scores |" in summary.read_text()
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("::error ")]
    assert line.startswith("::error title=tiny for cpu-fbgemm%3A quality::SNR of scores: ")


def test_what_could_not_run_is_an_error(home: Home, tmp_path: Path) -> None:
    junit, summary, options = files(tmp_path)
    answer = ask(*home.build("tiny.onnx", *options, calibration="absent.npz"))
    assert (answer.status, answer.code) == (2, "samples-not-found")
    (case,) = cases(junit).values()
    assert case[0].tag == "error"
    assert "error[samples-not-found]" in case[0].get("message", "")
    assert summary.read_text().startswith("### ❌ ERROR: build ")
    assert "::error title=build " in answer.stderr


def test_a_file_that_cannot_be_written_is_refused_before_the_build(home: Home) -> None:
    answer = ask(*home.build("tiny.onnx", "--junit", home / "absent/j.xml"))
    assert answer.status == 2
    assert not answer.document.get("ledger")


@pytest.mark.parametrize(
    ("allowed", "tag", "level"), [(False, "failure", "error"), (True, "skipped", "warning")]
)
def test_unverified_fails_the_job_unless_it_is_allowed(
    tmp_path: Path, allowed: bool, tag: str, level: str
) -> None:
    checks = check_report(report_cases.unverified(), allowed)  # type: ignore[arg-type]
    junit = tmp_path / "j.xml"
    junit.write_bytes(render_junit(checks))
    (case,) = [case for name, case in cases(junit).items() if name.endswith(": verdict")]
    assert [child.tag for child in case] == [tag]
    assert render_summary(checks).startswith("### ⚠️ UNVERIFIED: efficientnet-lite0 for cpu-fbgemm")
    assert annotate(checks)[0].startswith(f"::{level} title=efficientnet-lite0 for cpu-fbgemm%3A ")


def test_several_targets_share_one_file(tmp_path: Path) -> None:
    junit = tmp_path / "j.xml"
    outputs = Outputs(junit, None, annotates=False)
    rows = 0
    for report in (report_cases.unverified(), report_cases.hostile()):
        checks = check_report(report)  # type: ignore[arg-type]
        outputs.write(checks)
        rows += len(checks.rows)
        root = ElementTree.parse(junit).getroot()
        assert int(root.get("tests", "")) == rows == len(list(root.iter("testcase")))
    assert sum(int(suite.get("tests", "")) for suite in root) == rows
    assert len(root) == 2


def test_foreign_text_stays_in_its_place(tmp_path: Path) -> None:
    checks = check_report(report_cases.hostile())  # type: ignore[arg-type]
    junit = tmp_path / "j.xml"
    junit.write_bytes(render_junit(checks))
    assert cases(junit)
    assert "<script" not in render_summary(checks)
    for line in annotate(checks):
        assert len(line.splitlines()) == 1


def test_names_of_a_bundle_are_text_to_every_reader(tmp_path: Path) -> None:
    name = "x | y\n\n# PASS\n::error::a ![b](http://c) ]]> **d** `e` \\| \uffff ##[error]f"
    row = Check(name, name, "FAIL", name, name, name)
    verdict = Check("verdict", "verdict", "FAIL", "FAIL", "", name)
    checks = Checks(name, "FAIL", [row, verdict], [("Metric", name)], [name])
    junit = tmp_path / "j.xml"
    junit.write_bytes(render_junit(checks))
    assert len(cases(junit)) == 2
    summary = render_summary(checks)
    assert not re.search(r"[`\[\]*\\]|^#[^#]", summary, re.MULTILINE)
    rows = [line for line in summary.splitlines() if "❌ |" in line]
    assert [line.count("|") for line in rows] == [5]
    for line in annotate(checks):
        assert re.match(r"::(error|warning) title=[^:]*::", line)
        assert len(line.splitlines()) == 1
        assert "##[" not in line
    assert "##[" not in printable("a ##[error]b")
    assert printable(" ::set-output name=a::b").lstrip().startswith(": :")


def run_action(tmp_path: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Run the script of the action's last step; return its status, outputs and summary."""
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "run"]
    values = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()}
    values.update(inputs)
    variables = {"RUNNER_TEMP": str(tmp_path)}
    for name, text in step["env"].items():
        variables[name] = re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: values[m[1]], text)
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        (tmp_path / name).touch()
        variables[name] = str(tmp_path / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env={**os.environ, **variables, "PATH": path}, timeout=120,
    )  # fmt: skip
    lines = (tmp_path / "GITHUB_OUTPUT").read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return done.returncode, outputs, (tmp_path / "GITHUB_STEP_SUMMARY").read_text()


def test_the_action_verifies_a_bundle(built: Path, tmp_path: Path) -> None:
    status, outputs, summary = run_action(tmp_path, command="verify", file=str(built))
    assert status == 0
    assert outputs["verdict"] == "PASS"
    assert outputs["bundle"] == str(built)
    assert cases(Path(outputs["junit"]))
    assert "PASS" in summary


def test_the_action_names_the_rejected_bundle(home: Home, tmp_path: Path) -> None:
    (tmp_path / "my gates.toml").write_text(UNREACHABLE)
    (tmp_path / "out").mkdir()
    arguments = home.build("tiny.onnx", "--manifest", "my gates.toml")
    quoted = " ".join(f"'{word}'" for word in arguments[2:])
    status, outputs, _ = run_action(
        tmp_path, file=home / "tiny.onnx", arguments=quoted, output="out/x.edgepack"
    )
    assert (status, outputs["verdict"]) == (1, "FAIL")
    assert (tmp_path / outputs["bundle"]).name == "x.rejected.edgepack"
    assert (tmp_path / outputs["bundle"]).is_file()


def test_no_step_of_the_action_runs_an_input_as_a_command() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
