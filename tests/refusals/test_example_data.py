"""The example models on data that is missing or damaged: one small case for each error."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgepack.errors import DataError, HostError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def load(name: str) -> ModuleType:
    """A module of `examples/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Reads its pictures in `tmp_path`."""
    monkeypatch.setenv("EDGEPACK_FASHION_MNIST", str(tmp_path))
    return load("fashion_resnet")


@pytest.fixture
def silero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Reads its weights and recordings in `tmp_path`."""
    monkeypatch.setenv("EDGEPACK_SILERO_VAD", str(tmp_path))
    return load("silero_vad")


def idx(*shape: int, values: int, kind: int = 8) -> bytes:
    header = struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape), *shape)
    return header + bytes(values)


def test_missing_pictures_name_the_package(fashion: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        next(fashion.evaluation())
    assert caught.value.code == "dataset-missing"
    assert str(tmp_path) in caught.value.why
    assert TEST_FILES[0] in caught.value.why
    assert "apt-get install dataset-fashion-mnist" in caught.value.hint


# A compressed file tells its time: one time for all, since a test is known by what it is given.
def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


DAMAGED = {
    "no-gzip": (b"not gzip at all", "cannot be unpacked"),
    "gzip-cut": (packed(idx(1, 28, 28, values=784))[:-12], "cannot be unpacked"),
    "gzip-of-zeros": (b"\x1f\x8b\x08" + bytes(40), "cannot be unpacked"),
    "empty": (packed(b""), "starts with"),
    "doubles": (packed(idx(1, 28, 28, values=784, kind=13)), "starts with 00 00 0d"),
    "header-cut": (packed(b"\x00\x00\x08\x03\x00\x00"), "cut off"),
    "half-the-values": (packed(idx(2, 28, 28, values=784)), "784 values"),
    "larger-pictures": (packed(idx(1, 32, 32, values=1024)), "do not fit"),
    "more-than-labels": (packed(idx(2, 28, 28, values=1568)), "do not fit"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_pictures(fashion: ModuleType, tmp_path: Path, damage: str) -> None:
    images, why = DAMAGED[damage]
    (tmp_path / TEST_FILES[0]).write_bytes(images)
    (tmp_path / TEST_FILES[1]).write_bytes(packed(idx(1, values=1)))
    with pytest.raises(DataError) as caught:
        fashion.pictures("test")
    assert caught.value.code == "idx-damaged"
    assert why in caught.value.why


def test_score_without_pictures_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_FASHION_MNIST", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    weights = EXAMPLES / "weights" / "fashion-resnet.safetensors"
    script = str(EXAMPLES / "fashion_resnet.py")
    command = [sys.executable, script, "score", "--weights", str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error[dataset-missing]")


def test_silero_that_was_not_prepared(silero: ModuleType) -> None:
    with pytest.raises(DataError) as caught:
        next(silero.calibration())
    assert caught.value.code == "dataset-missing"
    assert "silero_vad.py prepare" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        # 16-bit integers, as most recordings are.
        b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
        + struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
        + b"data\x00\x00\x00\x00",
        # The right format at 48 kHz.
        b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
        + struct.pack("<HHIIHH", 3, 1, 48_000, 192_000, 4, 32)
        + b"data\x00\x00\x00\x00",
        # No samples.
        b"RIFF\x1c\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
        + struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32),
    ],
)
def test_recording_of_another_format(silero: ModuleType, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "trn01.wav"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        silero.read_wav(path)
    assert caught.value.code == "recording-unreadable"
    assert str(path) in caught.value.what


def test_prepare_from_a_folder_without_the_packages(silero: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        silero.prepare(tmp_path / "out", packages=tmp_path)
    assert caught.value.code == "package-not-fetched"
    assert "silero_vad-6.2.3" in caught.value.why
    assert not (tmp_path / "out").exists()
