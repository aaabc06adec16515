"""The process that judges a bundle has nothing but what a device has."""

from __future__ import annotations

import json
import socket
import zipfile
from pathlib import Path

import pytest
from build_cases import entry

from edgepack.device import Local

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
    with Local() as host:
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
    with Local() as host, socket.create_server(("127.0.0.1", 0)) as server:
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
