"""Three verdicts: which one a bundle gets, and the exit code that follows from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import bundle, device
from edgepack.cli.boundary import find_status
from edgepack.device import Local
from edgepack.device.device import Finished
from edgepack.errors import HostError
from edgepack.proof import require_emulators
from edgepack.report import render_matrix
from edgepack.request import Request
from edgepack.runtime.commands.verify import verify
from edgepack.runtime.device.machine import describe
from edgepack.runtime.parity.verdict import decide
from edgepack.spec import target
from support.build_cases import render_text
from support.bundle_cases import run_bundle
from support.linear import linear_contents, measured

OTHER_ARCH = {"x86_64": "arm-qnnpack", "aarch64": "cpu-fbgemm"}[describe()["arch"]]
DOUBT = {"code": "random-samples", "text": "random"}


def question(*passed: bool) -> Any:
    gates = [
        {"name": "snr_db", "output": "y", "bound": 9, "measured": 8, "passed": gate, "note": ""}
        for gate in passed
    ]
    return {"gates": gates, "passed": bool(passed) and all(passed)}


@pytest.mark.parametrize(
    ("questions", "doubts", "verdict", "codes"),
    [
        ([question(True), question(True)], [], "PASS", []),
        ([question(True), None], [], "PASS", []),
        ([question(True), question(True, False)], [], "FAIL", ["gate-missed"]),
        ([question(True), question(True)], [DOUBT], "UNVERIFIED", ["random-samples"]),
        # A missed gate outweighs what was not verified.
        ([question(False), question()], [DOUBT], "FAIL",
         ["gate-missed", "random-samples", "not-gated"]),
        ([question(), question(True)], [], "UNVERIFIED", ["not-gated"]),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_gates_and_doubts(
    questions: list[Any], doubts: list[Any], verdict: str, codes: list[str]
) -> None:
    answer, reasons = decide(questions, doubts)
    assert (answer, [reason["code"] for reason in reasons]) == (verdict, codes)


@pytest.mark.parametrize(
    ("verdict", "allowed", "status"),
    [("PASS", False, 0), ("FAIL", True, 1), ("UNVERIFIED", False, 1), ("UNVERIFIED", True, 0),
     (None, True, 2)],
)  # fmt: skip
def test_only_pass_exits_with_0_unless_it_is_allowed(
    verdict: str | None, allowed: bool, status: int
) -> None:
    assert find_status(verdict, allowed) == status


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was calibrated on random numbers and meets every gate."""
    path = tmp_path_factory.mktemp("random") / "x.edgepack"
    contents = linear_contents()
    contents = measured(replace(contents, built=contents.original))
    bundle.write(path, replace(contents, provenance={**contents.provenance, "proven": False}))
    return path


def test_random_samples_stay_unverified_on_the_device(random_bundle: Path) -> None:
    done = run_bundle(random_bundle, "verify")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
        "verdict: UNVERIFIED",
        "  calibrated on or judged by random samples: quality on real inputs is unknown",
    ]
    assert run_bundle(random_bundle, "verify", "--allow-unverified").returncode == 0


def test_each_column_of_a_matrix_has_its_own_verdict(
    random_bundle: Path, linear_bundle: Path
) -> None:
    with Local() as host:
        columns = []
        for path in (random_bundle, linear_bundle):
            columns += device.verify(path, [host])["devices"]
        matrix = device.verify(random_bundle, [host, host])
    assert matrix["verdict"] == "UNVERIFIED"
    assert [column["verdict"]["verdict"] for column in columns] == ["UNVERIFIED", "PASS"]
    shown = render_text(render_matrix, {"devices": columns})
    assert "▲ UNVERIFIED" in shown
    assert "✓ PASS" in shown
    assert "UNVERIFIED: calibrated on or judged by random samples" in shown


class OlderLocal(Local):
    """A device whose loader is of an earlier release, and states no verdict."""

    def run(self, bundle: str, *arguments: str, stdin: Iterable[bytes] = ()) -> Finished:
        finished = super().run(bundle, *arguments, stdin=stdin)
        document = json.loads(finished.stdout)
        document["proven"] = not document.pop("reasons")
        del document["verdict"]
        return replace(finished, stdout=json.dumps(document).encode())


def test_the_verdict_of_an_older_loader_follows_from_its_gates(
    random_bundle: Path, linear_bundle: Path
) -> None:
    columns = []
    with OlderLocal() as host:
        for path in (random_bundle, linear_bundle):
            columns += device.verify(path, [host])["devices"]
    verdicts = [column["verdict"] for column in columns]
    assert [verdict["verdict"] for verdict in verdicts] == ["UNVERIFIED", "PASS"]
    assert [reason["code"] for reason in verdicts[1]["reasons"]] == ["older-loader"]
    shown = render_text(render_matrix, {"devices": columns})
    assert "PASS: the bundle's older loader states no verdict" in shown


def test_the_build_host_standing_in_proves_nothing_of_the_target(linear_bundle: Path) -> None:
    assert verify(str(linear_bundle))["verdict"] == "PASS"
    verdict = verify(str(linear_bundle), stand_in=True)
    assert verdict["passed"]
    assert verdict["verdict"] == "UNVERIFIED"
    assert [reason["code"] for reason in verdict["reasons"]] == ["not-on-target"]


def request_for(profile: str, **fields: Any) -> Request:
    return Request(Path("m.onnx"), target.load(profile), Path("m.edgepack"), "m", **fields)


def test_an_architecture_that_cannot_be_emulated_is_refused_before_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Another test may have prepared an emulator in the cache of the tests.
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    with pytest.raises(HostError) as caught:
        require_emulators(request_for(OTHER_ARCH))
    cure, instead = caught.value.hint.splitlines()
    assert cure.startswith(("edgepack emulator prepare", "apt-get install qemu-user", "emulate it"))
    assert "--no-emulate --allow-unverified" in instead
    require_emulators(request_for(OTHER_ARCH, emulate=False))
    # No emulator has a GPU, so that there is nothing to prepare.
    require_emulators(request_for("jetson-trt"))


def test_a_foreign_profile_without_cpus_is_refused_before_the_build(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    text = f'schema = 1\nextends = "{OTHER_ARCH}"\nname = "mine"\n[emulate]\ncpus = []\n'
    profile.write_text(text)
    with pytest.raises(HostError) as caught:
        require_emulators(request_for(str(profile)))
    assert caught.value.code == "target-not-runnable"
