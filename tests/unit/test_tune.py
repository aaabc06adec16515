"""`tune`: measured, verified, sealed, and then used by every command; killed, nothing is torn."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgepack.bundle import copy_sealed, loader
from edgepack.bundle.loader import Need
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import Settings
from edgepack.runtime.bundle.index import Index, read_index
from edgepack.runtime.commands.apart import run_apart
from edgepack.runtime.device.device_info import device_info
from edgepack.runtime.device.tuned import Tuned, find_tuned, make_key, write_tuned
from edgepack.runtime.errors import DeviceError, EdgepackError
from edgepack.runtime.model import load
from edgepack.runtime.plain import file_mode
from support.bundle_cases import reseal, rewrite_index, run_bundle


@pytest.fixture
def tunable(linear_bundle: Path, tmp_path: Path) -> Path:
    """Return a bundle in a folder of its own."""
    path = tmp_path / "x.edgepack"
    path.write_bytes(linear_bundle.read_bytes())
    return path


def sealed(path: Path) -> Path:
    return path.with_name(path.name + ".tuned")


def beside(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def index_of(path: Path) -> Index:
    with Archive(str(path)) as archive:
        return read_index(archive)


def seal(path: Path, **key: Any) -> None:
    """Seal the choice of one thread, as `tune` would on this device, apart from its key."""
    index = index_of(path)
    present = make_key(index, device_info(index), ["onnxruntime"])
    settings = Settings(threads=1).to_json()
    with sealed(path).open("wb") as file:
        write_tuned(
            file,
            {
                "key": {**present, **key},  # type: ignore[typeddict-item]
                "choice": {
                    "variant": "onnxruntime",
                    "engine": "onnxruntime",
                    "settings": settings,
                },
                "candidates": [
                    {"label": "onnxruntime", "p50": 2.0, "ratio": 1.0, "result": "slower"},
                    {
                        "label": "onnxruntime, 1 thread",
                        "p50": 1.0,
                        "ratio": 2.0,
                        "result": "chosen",
                    },
                ],
            },
            {},
        )


def find(path: Path) -> Tuned | DeviceError | None:
    index = index_of(path)
    return find_tuned(str(path), index, device_info(index))


def test_tune_measures_verifies_and_seals(tunable: Path) -> None:
    done = run_bundle(tunable, "tune", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["tuned"], report["verdict"]) == (True, "PASS")
    assert report["seal"] == str(sealed(tunable))
    assert all(gate["passed"] for gate in report["quality"]["gates"])
    assert [row["result"] for row in report["candidates"]].count("chosen") == 1
    assert report["candidates"][0]["label"] == "onnxruntime"
    assert all(row["p50"] > 0 for row in report["candidates"])
    assert beside(tunable) == ["x.edgepack", "x.edgepack.tuned"]
    assert sealed(tunable).stat().st_mode & 0o777 == file_mode()
    # A second one does nothing, and `info` shows all candidates.
    before = sealed(tunable).read_bytes()
    again = run_bundle(tunable, "tune")
    assert (again.returncode, again.stderr) == (0, "")
    assert "already tuned: " in again.stdout
    assert sealed(tunable).read_bytes() == before
    shown = run_bundle(tunable, "info").stdout
    assert all(row["label"] in shown for row in report["candidates"])


def test_the_choice_is_used_unless_the_user_overrides_it(tunable: Path) -> None:
    assert load(tunable).choice.to_json().get("settings") is None
    seal(tunable)
    assert load(tunable).choice.to_json()["settings"] == {"threads": 1}
    verdict = json.loads(run_bundle(tunable, "verify", "--json").stdout)
    assert (verdict["verdict"], verdict["variant"]["settings"]) == ("PASS", {"threads": 1})
    for options in ({"threads": 2}, {"variant": "onnxruntime"}):
        assert load(tunable, **options).choice.to_json().get("settings") is None  # type: ignore[arg-type]


def test_the_faster_engine_wins_over_the_first_variant(linear_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgepack"
    index = dict(index_of(linear_bundle).raw)
    # On 24 products OpenVINO takes four times as long as onnxruntime.
    openvino = {"name": "openvino", "engine": "openvino", "needs": {}, "file": None}
    index["variants"] = [openvino, *index["variants"]]
    reseal(
        linear_bundle, path, loader.read_files(frozenset({Need.TUNE, Need.OPENVINO})), index=index
    )
    assert load(path).choice.require_variant().engine == "openvino"
    done = run_bundle(path, "tune", "--seconds", "4", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["choice"]["engine"] == "onnxruntime"
    assert set(report["key"]["engines"]) == {"onnxruntime", "openvino"}
    first = report["candidates"][0]
    assert (first["label"], first["ratio"], first["result"]) == (
        *("openvino", 1.0, "slower than the chosen"),
    )
    assert load(path).choice.require_variant().engine == "onnxruntime"
    assert "\n  openvino     not needed: a better one fits\n" in run_bundle(path, "info").stdout


def change_threads(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"threads": 1', b'"threads": 2'))


def as_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


FAULTS: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "tampered": (change_threads, "tuned-seal"),
    "truncated": (cut, "tuned-seal"),
    "empty": (lambda path: path.write_bytes(b""), "tuned-seal"),
    "large": (lambda path: path.write_bytes(b" " * (1 << 17)), "tuned-seal"),
    "list": (lambda path: path.write_bytes(b"[]"), "tuned-seal"),
    "writable by others": (lambda path: path.chmod(0o666), "tuned-untrusted"),
    "link": (as_link, "tuned-untrusted"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_choice_is_ignored_with_its_reason(tunable: Path, name: str) -> None:
    damage, code = FAULTS[name]
    seal(tunable)
    damage(sealed(tunable))
    fault = find(tunable)
    assert isinstance(fault, DeviceError)
    assert fault.code == code
    assert load(tunable).choice.to_json().get("settings") is None


OTHERS: Mapping[str, tuple[dict[str, object], str]] = {
    "bundle": ({"bundle": "0" * 64}, "bundle: it was tuned for 00000"),
    "CPU": ({"cpu": "Z80"}, "CPU: it was tuned for Z80; this is "),
    "cores": ({"cores": 1024}, "cores: it was tuned for 1024; this is "),
    "engine": ({"engines": {"onnxruntime": "1.0"}}, "onnxruntime: it was tuned for 1.0; this is "),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_choice_for_another_device_is_ignored_with_its_reason(tunable: Path, name: str) -> None:
    key, why = OTHERS[name]
    seal(tunable, **key)
    fault = find(tunable)
    assert isinstance(fault, DeviceError)
    assert (fault.code, fault.why.startswith(why)) == ("tuned-other", True), fault.why
    assert load(tunable).choice.to_json().get("settings") is None


def test_info_shows_why_a_choice_is_not_used(tunable: Path) -> None:
    seal(tunable, cpu="Z80")
    shown = run_bundle(tunable, "info").stdout
    assert "tuned: not used\n" in shown
    assert "  CPU: it was tuned for Z80; this is " in shown
    assert "  python3 BUNDLE tune\n" in shown


def test_a_copy_of_a_bundle_takes_the_choice_along(tunable: Path, tmp_path: Path) -> None:
    seal(tunable)
    (tmp_path / "private").mkdir()
    copy = tmp_path / "private" / "x.edgepack"
    copy_sealed(tunable, copy)
    assert sealed(copy).read_bytes() == sealed(tunable).read_bytes()
    sealed(copy).unlink()
    sealed(tunable).chmod(0o666)
    copy_sealed(tunable, copy)
    assert not sealed(copy).exists()


def test_a_missed_gate_seals_nothing(linear_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.edgepack"

    def reject(index: dict[str, Any]) -> None:
        index["quality"]["passed"] = False

    rewrite_index(linear_bundle, path, reject)
    done = run_bundle(path, "tune", "--seconds", "1", "--json")
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "tune-gate-missed"
    assert "onnxruntime: missed a gate: quality: FAIL" in error["why"]
    assert beside(path) == ["x.edgepack"]


def test_a_killed_one_seals_nothing_and_the_next_one_works(tunable: Path) -> None:
    part = tunable.with_name("x.edgepack.tuned.part")
    process = subprocess.Popen(
        [sys.executable, str(tunable), "tune", "--seconds", "60"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert beside(tunable) == ["x.edgepack", "x.edgepack.tuned.part"]
    assert load(tunable).choice.to_json().get("settings") is None
    # Its turn may still run, but holds no lock.
    done = run_bundle(tunable, "tune", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    assert beside(tunable) == ["x.edgepack", "x.edgepack.tuned"]


def test_two_at_a_time(tunable: Path) -> None:
    with tunable.with_name("x.edgepack.tuned.part").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run_bundle(tunable, "tune", "--json")
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["code"] == "tune-running"


def test_wrong_options_are_refused(tunable: Path) -> None:
    for value in ("0", "-1", "soon"):
        done = run_bundle(tunable, "tune", "--seconds", value)
        assert (done.returncode, "error[usage]" in done.stderr) == (2, True)


def test_a_process_that_dies_or_hangs_is_an_error_and_not_the_end() -> None:
    def fail() -> dict[str, object]:
        raise DeviceError("engine-refused", "no", why="because")

    assert run_apart(lambda: {"value": os.getpid()}, 30)["value"] != os.getpid()
    with pytest.raises(EdgepackError) as caught:
        run_apart(fail, 30)
    assert (caught.value.code, caught.value.why) == ("engine-refused", "because")
    with pytest.raises(DeviceError) as caught:
        run_apart(lambda: os.kill(os.getpid(), signal.SIGSEGV) or {}, 30)
    assert caught.value.why == "it ended with wait status 11"
    with pytest.raises(DeviceError) as caught:
        run_apart(lambda: time.sleep(60) or {}, 0.2)
    assert caught.value.why == "it took more than 0 s"
