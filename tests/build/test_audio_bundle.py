"""A bundle that takes recordings: `verify` begins with the bytes of a WAV or FLAC file."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgepack.runtime.model import load
from support.audio_cases import RATE, encode, tone
from support.bundle_cases import rewrite_index, run_bundle


def verify(path: Path) -> tuple[int, Any]:
    done = run_bundle(path, "verify", "--json")
    return done.returncode, json.loads(done.stdout)


def test_the_device_makes_the_build_s_waveforms(audio_bundle: Path) -> None:
    status, verdict = verify(audio_bundle)
    assert (status, verdict["verdict"]) == (0, "PASS")
    (gate,) = verdict["preprocessing"]["gates"]
    assert (gate["name"], gate["passed"]) == ("bit_exact", True)
    with zipfile.ZipFile(audio_bundle) as archive:
        names = archive.namelist()
        assert "soundfile" in archive.read("requirements.txt").decode()
        assert json.loads(archive.read("preprocess/classes.json"))["names"] == ["high", "low"]
    suffixes = {Path(name).suffix for name in names if name.startswith("reference/raw-")}
    assert suffixes == {".wav", ".flac"}


@pytest.mark.parametrize(
    "change",
    [{"rate": 2 * RATE}, {"scale": 1.01}, {"normalize": "unit-variance"}],
    ids=lambda change: "-".join(change),
)
def test_another_conversion_fails_as_preprocessing(
    audio_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "other.edgepack"
    rewrite_index(audio_bundle, path, lambda index: index["preprocessing"].update(change))
    status, verdict = verify(path)
    assert (status, verdict["verdict"]) == (1, "FAIL")
    assert not verdict["preprocessing"]["passed"]


@pytest.mark.parametrize(
    "change",
    [{"rate": 0}, {"layout": "samples-first"}, {"dtype": "int16"}, {"length": -1}, {"scale": "1"}],
    ids=lambda change: "-".join(change),
)
def test_a_document_that_is_not_valid_is_refused(
    audio_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "other.edgepack"
    rewrite_index(audio_bundle, path, lambda index: index["preprocessing"].update(change))
    done = run_bundle(path, "verify")
    assert done.returncode == 2
    assert "error[bundle-" in done.stderr


def test_run_answers_files_folders_and_standard_input(audio_bundle: Path) -> None:
    recordings = audio_bundle.with_name("tones")
    done = subprocess.run(
        [sys.executable, audio_bundle, "run", "--json", recordings / "low", "-"],
        input=encode(tone(900.0, 44100, 0.3, 1), 44100, "flac", "PCM_24"),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["predictions"]
    assert [answer["top"][0]["name"] for answer in answers] == ["low"] * 10 + ["high"]


def test_a_wav_file_needs_no_package_and_others_name_theirs(audio_bundle: Path) -> None:
    """Of the packages the isolated process has numpy and onnxruntime alone."""
    recordings = audio_bundle.with_name("tones")
    hide = "import sys; sys.modules['soundfile'] = None; import runpy; sys.argv = sys.argv[1:]; "
    hide += "runpy.run_path(sys.argv[0], run_name='__main__')"
    for name, code in (("low/0.wav", 0), ("low/9.flac", 2)):
        done = subprocess.run(
            [sys.executable, "-c", hide, audio_bundle, "run", recordings / name],
            capture_output=True,
            text=True,
        )
        assert done.returncode == code
        assert (code == 0) == (done.stderr == "")
    assert "error[package-missing]" in done.stderr
    assert "pip install soundfile" in done.stderr


def test_python_predicts_the_bytes_of_a_recording(audio_bundle: Path) -> None:
    model = load(audio_bundle)
    prediction = model.predict(encode(tone(300.0, 8000, 0.2, 5), 8000))
    assert prediction.top[0].name == "low"
