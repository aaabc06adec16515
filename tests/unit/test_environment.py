"""Users without a home, without rights, and with odd ones: what the environment may be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot become another user")
# An account that no system has.
NOBODY = 54321

AS_NOBODY = """
import json, os, sys
from edgepack.cache import Cache, default_folder
from edgepack.doctor import examine
from edgepack.errors import EdgepackError
examine()  # imports what that user may not read
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
try:
    result = {expression}
except EdgepackError as error:
    result = error.to_json()
print(json.dumps(result))
"""


def as_nobody(expression: str, **environment: str) -> object:
    """The value of an expression where this process has no rights and no account."""
    code = AS_NOBODY.format(nobody=NOBODY, expression=expression)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_root
def test_a_user_without_a_home_is_an_error_with_a_remedy() -> None:
    error = as_nobody("str(default_folder())")
    assert isinstance(error, dict)
    assert error["code"] == "home-missing"
    assert "EDGEPACK_CACHE" in error["hint"]


@needs_root
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    error = as_nobody("Cache(default_folder()).put('s', 'k', {}, {})", EDGEPACK_CACHE=str(folder))
    assert isinstance(error, dict)
    assert (error["code"], str(folder) in error["what"]) == ("output-unwritable", True)
    assert "EDGEPACK_CACHE" in error["hint"]


@needs_root
def test_doctor_survives_a_home_that_it_may_not_look_into(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    findings = as_nobody("[f.to_json() for f in examine()]", HOME=str(tmp_path / "home"))
    assert isinstance(findings, list)
    (disk,) = (finding for finding in findings if finding["name"] == "disk")
    assert not disk["present"]
    assert "EDGEPACK_CACHE" in disk["hint"]


def test_a_user_that_is_none_is_a_path_that_is_missing(tmp_path: Path) -> None:
    arguments = ["--target", "cpu-fbgemm", "--calibration", "~no-such-user/samples.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "edgepack", "build", "x.onnx", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] != "internal-error"


def test_ci_runs_the_tests_in_the_environment_of_a_newcomer(tmp_path: Path) -> None:
    """What a developer's machine sets must not hide what fails on a fresh one."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "make $*"\nenv\n')
    make.chmod(0o755)
    newcomer = {
        "PATH": f"{tmp_path}:{os.defpath}:/usr/bin:/bin", "HOME": "/home/new comer", "LANG": "C",
        "PIP_FIND_LINKS": "/a /b", "https_proxy": "http://proxy:1", "SSL_CERT_FILE": "/ca.pem",
    }  # fmt: skip
    hidden = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": "/x", "OMP_NUM_THREADS": "1", "TZ": "UTC"}
    done = subprocess.run(
        [ROOT / ".ci" / "run"], capture_output=True, text=True, env={**newcomer, **hidden}
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == "make test"
    assert {f"{name}={value}" for name, value in newcomer.items()} <= set(rest)
    assert not [line for line in rest if line.partition("=")[0] in hidden]
