"""What stands in the way of the proof on emulated CPUs, and what the build says then."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgepack.cache import Cache
from edgepack.context import Context
from edgepack.errors import DeviceError
from edgepack.ledger import Ledger
from edgepack.passes import parse_chain
from edgepack.progress import SilentProgress
from edgepack.proof.emulate import emulate
from edgepack.request import Request
from edgepack.runtime.device.machine import describe
from edgepack.spec import target
from support.build_cases import Home

X86_64 = pytest.mark.skipif(describe()["arch"] != "x86_64", reason="this host is not x86-64")


def request_for(name: str = "cpu-fbgemm", **fields: Any) -> Request:
    chain = parse_chain(fields.pop("chain", "quantize"))
    return Request(
        Path("m.onnx"), target.load(name), Path("m.edgepack"), "m", chain=chain, **fields
    )


def context_for(ledger: Ledger, name: str = "cpu-fbgemm", **fields: Any) -> Context:
    request = request_for(name, **fields)
    return Context(request, Cache(request.cache), ledger)


def host(seconds: float, samples: int = 4) -> dict[str, Any]:
    """What the verdict on this host says of its time."""
    return {"seconds": {"reference": seconds}, "fidelity": {"samples": samples}}


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A qemu-x86_64 that dies of whatever it is asked."""
    program = tmp_path / "bin" / "qemu-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'qemu: uncaught target signal 4' >&2\nkill -ILL $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program


@X86_64
@pytest.mark.usefixtures("qemu")
def test_a_model_that_would_take_hours_is_left_out() -> None:
    ledger = Ledger(SilentProgress())
    found = emulate(context_for(ledger), Path("m.edgepack"), host(40.0), False)
    assert found == {}
    (record,) = ledger.records
    assert record.status == "skipped"
    assert record.notes == (
        "one sample could take 52 h 46 min there: edgepack verify --emulate Haswell",
    )
    assert ledger.warnings == [f"not verified on CPUs without VNNI ({record.notes[0]})"]


@X86_64
@pytest.mark.usefixtures("qemu")
def test_an_emulator_that_dies_fails_the_build(linear_bundle: Path) -> None:
    ledger = Ledger(SilentProgress())
    with pytest.raises(DeviceError) as caught:
        emulate(context_for(ledger), linear_bundle, host(0.01), True)
    assert caught.value.code == "loader-died"
    assert "Haswell" in caught.value.what
    assert "uncaught target signal" in caught.value.why
    assert "--no-emulate skips this verification" in caught.value.hint
    assert ledger.records[0].status == "failed"


@X86_64
def test_a_build_that_is_stopped_does_not_wait(home: Home, qemu: Path, tmp_path: Path) -> None:
    begun, output = tmp_path / "begun", tmp_path / "x.edgepack"
    qemu.write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 100\n")
    arguments = [a for a in home.build("tiny.onnx", "--output", str(output)) if a != "--no-emulate"]
    build = subprocess.Popen([sys.executable, "-m", "edgepack", *arguments, "--quiet"])
    started = time.monotonic()
    while not begun.exists() and build.poll() is None and time.monotonic() < started + 200:
        time.sleep(0.1)
    assert begun.exists()
    asked = time.monotonic()
    build.send_signal(signal.SIGTERM)
    assert build.wait(60) == 143
    assert time.monotonic() < asked + 50
    assert not output.exists()


@X86_64
@pytest.mark.parametrize(
    ("fields", "note", "warned"),
    [
        ({"emulate": False}, "--no-emulate", True),
        ({"chain": "none"}, "an emulated float model takes minutes", False),
        ({"name": "arm-qnnpack", "emulate": False}, "--no-emulate", True),
    ],
)
def test_what_is_not_asked_for(fields: dict[str, Any], note: str, warned: bool) -> None:
    ledger = Ledger(SilentProgress())
    assert emulate(context_for(ledger, **fields), Path("m.edgepack"), host(0.01), True) == {}
    (record,) = ledger.records
    assert record.status == "skipped"
    assert note in record.notes[0]
    assert bool(ledger.warnings) is warned


@X86_64
def test_a_profile_without_cpus_has_no_such_stage(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('schema = 1\nextends = "cpu-fbgemm"\nname = "mine"\n[emulate]\ncpus = []\n')
    ledger = Ledger(SilentProgress())
    assert emulate(context_for(ledger, str(profile)), Path("m.edgepack"), host(0.01), True) == {}
    assert not ledger.records
    assert not ledger.warnings
