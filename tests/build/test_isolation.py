"""The process that judges a bundle has nothing but what a device has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgepack.device import Local
from support import ROOT
from support.build_cases import entry

PROBE = """
import importlib.util, json, os, socket, sys

found = {name: importlib.util.find_spec(name) is not None
         for name in ("torch", "edgepack", "onnx", "click", "numpy", "onnxruntime")}
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5).close()
    found["network"] = "open"
except OSError as error:
    found["network"] = str(error)
found["environment"] = sorted(os.environ)
print(json.dumps(found))
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.edgepack"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", PROBE)
    return path


def test_only_numpy_and_the_engine_can_be_imported(
    probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with Local(runs_bundle=True) as host:
        finished = host.run(host.put(probe), "1")
    assert finished.status == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert {n: found[n] for n in ("torch", "edgepack", "onnx", "click")} == dict.fromkeys(
        ("torch", "edgepack", "onnx", "click"), False
    )
    assert found["numpy"]
    assert found["onnxruntime"]
    assert "SECRET_TOKEN" not in found["environment"]


def test_nothing_can_be_reached(probe: Path) -> None:
    """A server that listens on this machine is out of reach, though it answers this process."""
    with Local(runs_bundle=True) as host, socket.create_server(("127.0.0.1", 0)) as server:
        if host.network != "namespace":
            pytest.skip("this kernel refuses a network namespace of one's own")
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        found = json.loads(host.run(host.put(probe), str(port)).stdout)
    assert found["network"] != "open"


def test_the_report_tells_how_it_was_proved(built: Path) -> None:
    inside = json.loads(entry(built, "report/report.json"))
    with Local() as host:
        network = host.network
    assert inside["isolation"] == {"network": network, "hidden": ["torch", "edgepack"]}


def test_the_engine_reports_to_nobody(linear_bundle: Path, tmp_path: Path) -> None:
    """onnxruntime's wheels report each process and session, unless they are told not to."""
    for command in (
        [sys.executable, str(linear_bundle), "verify"],
        [sys.executable, "-c", f"import edgepack; edgepack.load({str(linear_bundle)!r})"],
    ):
        home = tmp_path / str(len(command[1]))
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
        environment = {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
        environment["XDG_CACHE_HOME"] = str(home / ".cache")
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not [path for path in home.rglob("*") if path.is_file()]
