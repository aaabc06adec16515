"""What a build takes from an earlier one, what makes it miss, and what a killed one left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepack.cache import Cache
from support.build_cases import Home, ask, build, edgepack, one_document, tiny_onnx, tiny_weights

STAGES = ("original", "export", "simplify", "quantize")


@pytest.fixture
def mine(torch_home: Home, tmp_path: Path) -> Home:
    """A copy of the user's folder that may be changed."""
    shutil.copytree(torch_home.folder, tmp_path / "mine")
    return Home(tmp_path / "mine")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def computed(arguments: list[str], output: Path, *options: str) -> list[str]:
    """The stages that a build computed; the others came from the cache."""
    answer = build(arguments, output, *options)
    found = [name for name in STAGES if any(r["stage"] == name for r in answer.document["ledger"])]
    return [name for name in found if answer.stage(name)["status"] not in ("cached", "skipped")]


def state_dict(home: Home, *options: str) -> list[str]:
    evaluation = ["--evaluation", home / "evaluation.npz"]
    return home.build("tiny.pt", "--arch", home / "nets.py:tiny", *evaluation, *options)


def test_an_unchanged_build_computes_nothing(mine: Home, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    assert computed(state_dict(mine), output) == list(STAGES)
    assert computed(state_dict(mine), output) == []
    # Elsewhere, under another name, and in another process.
    moved = shutil.move(mine.folder, tmp_path / "moved")
    done = edgepack(*state_dict(Home(Path(moved))), "--output", "y.edgepack", "--json", cwd=moved)
    ledger = {r["stage"]: r["status"] for r in one_document(done.stdout)["ledger"]}
    assert {ledger[name] for name in STAGES} == {"cached"}
    assert computed(state_dict(Home(Path(moved))), output, "--refresh") == list(STAGES)


@pytest.mark.parametrize("refresh", [False, True])
def test_a_cache_that_is_cleaned_meanwhile_fails_no_build(
    mine: Home, cache: Path, tmp_path: Path, refresh: bool
) -> None:
    """Two builds at once, of one model, while the cache is cleaned again and again."""
    builds = [
        subprocess.Popen(
            [sys.executable, "-m", "edgepack", *mine.build("tiny.onnx"), "-q", "--output",
             str(tmp_path / f"{i}.edgepack"), *(["--refresh"] if refresh and i else [])],
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    cleaned = 0
    while any(process.poll() is None for process in builds):
        cleaned += Cache(cache).clean().entries
        time.sleep(0.01)
    for process in builds:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert cleaned > 0
    Cache(cache).clean()
    assert Cache(cache).size() == 0


def test_the_user_s_code_counts(mine: Home, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    build(state_dict(mine), output)
    for name in ("nets.py", "parts.py"):
        Path(mine / name).write_text(Path(mine / name).read_text() + "\nUNUSED = 1\n")
        assert computed(state_dict(mine), output)[:2] == ["original", "export"], name
        assert computed(state_dict(mine), output) == [], name


def test_weights_count(mine: Home, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    build(mine.build("tiny.onnx"), output)
    onnx.save(tiny_onnx({**tiny_weights(), "0.bias": np.ones(8, np.float32)}), mine / "tiny.onnx")
    assert computed(mine.build("tiny.onnx"), output) == ["original", "simplify", "quantize"]


def test_each_set_of_samples_counts_where_it_is_used(
    mine: Home, cache: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.edgepack"
    arguments = mine.build("tiny.onnx", "--evaluation", mine / "evaluation.npz")
    assert computed(arguments, output) == ["original", "simplify", "quantize"]
    for role, missed in (("calibration", ["quantize"]), ("evaluation", ["original"])):
        with np.load(mine / f"{role}.npz") as arrays:
            samples = dict(arrays)
        samples["image"][0, 0, 0, 0] += 1
        np.savez(mine / f"{role}.npz", **samples)
        assert computed(arguments, output) == missed
    # The same content stored otherwise is the same.
    np.savez_compressed(mine / "evaluation.npz", **samples)
    assert computed(arguments, output) == []


def test_options_count_where_they_are_used(mine: Home, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    arguments = mine.build("tiny.onnx")
    build(arguments, output)
    assert computed([*arguments, "--chain", "quantize:calibrator=minmax"], output) == ["quantize"]
    assert computed([*arguments, "--chain", "none"], output) == []
    assert computed([*arguments, "--strict"], output) == []


def test_a_target_of_one_s_own_shares_what_it_can(mine: Home, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    build(mine.build("tiny.onnx"), output)
    profile = tmp_path / "mine.toml"
    profile.write_text(
        'schema = 1\nextends = "cpu-fbgemm"\nname = "mine"\nsummary = "of my own"\n'
        '[quantize]\ncalibrator = "percentile"\n'
    )
    arguments = [a if a != "cpu-fbgemm" else str(profile) for a in mine.build("tiny.onnx")]
    assert computed(arguments, output) == ["quantize"]


def test_damage_is_noticed(mine: Home, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    build(mine.build("tiny.onnx"), output)
    (model,) = cache.glob("stages/quantize/*/model.onnx")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    assert computed(mine.build("tiny.onnx"), output) == ["quantize"]


def test_a_killed_build_resumes(mine: Home, cache: Path, tmp_path: Path) -> None:
    """Killed while the calibration samples are read for the second time, in `quantize`."""
    samples = Path(mine / "samples.py")
    samples.write_text(
        samples.read_text().replace("    for label", "    pause()\n    for label")
        + "\n\ndef pause():\n    import os, pathlib, time\n"
        "    seen = pathlib.Path(__file__).with_name('seen')\n"
        "    if seen.exists() and os.environ.get('STALL'):\n"
        "        print('calibrating', flush=True)\n        time.sleep(120)\n"
        "    seen.touch()\n"
    )
    evaluation = ["--evaluation", mine / "evaluation.npz"]
    calibration = ["--calibration", "samples.py:calibration", "--output", str(tmp_path / "x"),
                   "--max-drop", "100"]  # fmt: skip
    arguments = mine.build("tiny.onnx", *evaluation, *calibration, calibration="")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepack", *arguments], cwd=mine.folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "STALL": "1"},
    )  # fmt: skip
    # What the user's code prints goes to standard error: standard output is the result's.
    assert any(line == "calibrating\n" for line in process.stderr)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    done = edgepack(*arguments, "--json", cwd=mine.folder)
    assert done.returncode == 0, done.stderr
    ledger = {r["stage"]: r["status"] for r in one_document(done.stdout)["ledger"]}
    assert [ledger[name] for name in STAGES] == ["cached", "skipped", "cached", "done"]


def test_a_terminated_build_clears_up(mine: Home, cache: Path, tmp_path: Path) -> None:
    """SIGTERM while the loader judges the bundle: no temporary file, no process stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "temporary").mkdir()
    output = ["--output", str(tmp_path / "out" / "x.edgepack")]
    arguments = [a if a != "none" else "normal" for a in mine.build("tiny.onnx", *output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepack", *arguments], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    for line in process.stderr:
        if "verify" in line:
            break
    assert len(list((tmp_path / "out").iterdir())) == 1  # the temporary one
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert list((tmp_path / "out").iterdir()) == []
    assert list((tmp_path / "temporary").glob("*edgepack*")) == []


def test_a_cache_that_can_only_be_read(mine: Home, cache: Path, tmp_path: Path) -> None:
    """Another user's, or in an image: what is in it is taken."""
    if os.geteuid() != 0:
        pytest.skip("not root: no file system can be mounted read-only")
    build(mine.build("tiny.onnx"), tmp_path / "x.edgepack")
    command = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    arguments = mine.build("tiny.onnx", "--output", str(tmp_path / "y.edgepack"), "--json")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "-", str(cache),
         sys.executable, "-m", "edgepack", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"this kernel mounts nothing: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    ledger = {r["stage"]: r["status"] for r in one_document(done.stdout)["ledger"]}
    assert ledger["quantize"] == "cached"


def test_info_and_clean(mine: Home, cache: Path, tmp_path: Path) -> None:
    build(mine.build("tiny.onnx"), tmp_path / "x.edgepack")
    info = ask("cache", "info").document
    assert info["folder"] == str(cache)
    # Four stages, the identity, other sizes, the evaluation of the original and of the int8 graph.
    assert info["entries"] == 8
    assert info["bytes"] == sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    nothing = {"entries": 0, "bytes": 0, "in_use": 0}
    assert ask("cache", "clean", "--older-than", "1").document == nothing
    assert ask("cache", "clean").document == {**nothing, "entries": 8, "bytes": info["bytes"]}
    assert ask("cache", "info").document["entries"] == 0
    assert len(computed(mine.build("tiny.onnx"), tmp_path / "x.edgepack")) == 3
