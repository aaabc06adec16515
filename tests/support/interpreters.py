"""The Pythons of this machine, each with what a bundle's requirements.txt gives it.

They stand under `.pythons/`, are kept between runs, and come into being whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from support import ROOT

KEPT = ROOT / ".pythons"
REQUIREMENTS = "requirements.txt"
# What pip says where it cannot reach an index; whatever else it fails with is a wrong pin.
OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
    r"|Connection refused|Network is unreachable|Temporary failure in name resolution"
)


@cache
def find(version: str) -> Path | None:
    """The interpreter of a version ("3.8"): the newest of pyenv's, else the one on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = [path for path in pyenv.glob(f"{version}.*") if re.fullmatch(r"[\d.]+", path.name)]
    newest_first = sorted(kept, key=lambda path: int(path.name.rsplit(".", 1)[1]), reverse=True)
    on_path = shutil.which(f"python{version}")
    candidates = [path / "bin" / "python" for path in newest_first]
    for candidate in [*candidates, *([Path(on_path)] if on_path else [])]:
        # One of pyenv's shims is there whether or not its version is.
        if _says(candidate, "import sys; print('%d.%d' % sys.version_info[:2])") == version:
            return candidate
    return None


def _says(python: Path, code: str) -> str:
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError:
        return ""
    return done.stdout.strip()


@cache
def equipped(version: str, requirements: str) -> Path:
    """An interpreter of that version with those requirements and nothing else.

    Skips, with the reason, where this machine has no such Python or cannot download.
    """
    python = find(version)
    if python is None:
        pytest.skip(f"no Python {version} here: pyenv install {version}")
    exact = _says(python, "import platform; print(platform.python_version())")
    place = KEPT / exact
    kept = place / REQUIREMENTS
    if not (kept.is_file() and kept.read_text() == requirements):
        KEPT.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=KEPT, prefix=".new-"))
        try:
            _install(python, temporary, requirements)
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return place / "bin" / "python"


def _install(python: Path, place: Path, requirements: str) -> None:
    made = subprocess.run([python, "-m", "venv", place], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"{python} makes no virtual environment: {made.stdout.strip()[:200]}")
    # Last into its place: a folder that has it is whole.
    pip = (place / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    listed = place / REQUIREMENTS
    listed.write_text(requirements)
    done = subprocess.run(
        [*pip, "install", "--only-binary", ":all:", "--requirement", listed],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 and OFFLINE.search(done.stderr):
        pytest.skip(f"nothing can be downloaded for {python}: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
