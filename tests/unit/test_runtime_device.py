"""What the loader says of the device, and what it refuses."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from edgepack.runtime.commands.bench import FEWEST, percentiles
from edgepack.runtime.device import machine
from edgepack.runtime.errors import DeviceError

HERE: dict[str, Any] = {
    "arch": "x86_64",
    "cpu": "A CPU",
    "isa": ["avx2", "fma", "sse2"],
    "python": platform.python_version(),
}
X86 = """processor\t: 0
model name\t: Some(R) CPU @ 2.00GHz
flags\t\t: fpu sse2 avx2

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd crc32
CPU implementer\t: 0x41
CPU part\t: 0xd03
"""


def test_this_machine() -> None:
    found = machine.describe()
    assert found["arch"] == machine.ARCHS.get(platform.machine().lower(), platform.machine())
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["isa"] is None or found["isa"] == sorted(found["isa"])


@pytest.mark.parametrize(
    ("text", "cpu", "isa"),
    [
        (X86, "Some(R) CPU @ 2.00GHz", ["avx2", "fpu", "sse2"]),
        (ARM, "Cortex-A53", ["asimd", "crc32", "fp"]),
        (ARM.replace("0xd03", "0xd42"), "Cortex-A78AE", ["asimd", "crc32", "fp"]),
        (
            ARM.replace("0x41", "0x4e").replace("0xd03", "0x004"),
            "NVIDIA Carmel",
            ["asimd", "crc32", "fp"],
        ),
        # A part of another maker, a number of nobody, no number at all, and no maker.
        (ARM.replace("0x41", "0x4e"), "0xd03", ["asimd", "crc32", "fp"]),
        (ARM.replace("0xd03", "0xfff"), "0xfff", ["asimd", "crc32", "fp"]),
        (ARM.replace("0xd03", "unknown"), "unknown", ["asimd", "crc32", "fp"]),
        (ARM.replace("CPU implementer", "other"), "0xd03", ["asimd", "crc32", "fp"]),
    ],
)
def test_cpuinfo(
    text: str, cpu: str, isa: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first processor tells; x86 and ARM name the same things otherwise."""
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", str(path))
    found = machine.describe()
    assert (found["cpu"], found["isa"]) == (cpu, isa)


def test_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux nothing is known of the instruction sets, and none is refused."""
    monkeypatch.setattr(machine, "CPUINFO", str(tmp_path / "absent"))
    found = machine.describe()
    assert found["isa"] is None
    assert found["cpu"]
    machine.require({"arch": found["arch"], "isa": ["avx9000"], "python": "3.8"}, found)


def test_peak_memory_grows_with_what_is_used() -> None:
    before = machine.peak_rss()
    block = bytearray(b"x") * (64 << 20)
    assert machine.peak_rss() - before > 32 << 20 or before > len(block)


@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"arch": "x86_64", "isa": ["avx2", "fma"], "python": "3.8"},
        {"arch": "x86_64", "isa": [], "python": platform.python_version()},
    ],
)
def test_what_fits(needs: dict[str, Any]) -> None:
    machine.require(needs, HERE)


@pytest.mark.parametrize(
    ("needs", "code", "why"),
    [
        ({"arch": "aarch64"}, "device-arch", "it is for aarch64; this is x86_64"),
        ({"isa": ["avx2", "amx"]}, "device-isa", "it lacks amx: A CPU"),
        (
            {"python": "4.0"},
            "device-python",
            f"it needs 4.0 or newer; this is {platform.python_version()}",
        ),
    ],
)
def test_what_does_not(needs: dict[str, Any], code: str, why: str) -> None:
    with pytest.raises(DeviceError) as caught:
        machine.require(needs, HERE)
    assert (caught.value.code, caught.value.why) == (code, why)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1.31.1", (1, 31, 1)),
        ("1.31.1+cu12", (1, 31, 1)),
        ("1.20.0rc1", (1, 20, 0)),
        ("1.20.0.dev20260101", (1, 20, 0)),
        ("3.13.0+", (3, 13, 0)),
        ("", ()),
        ("main", ()),
    ],
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert machine.version_tuple(text) == numbers


def test_1_9_is_older_than_1_19() -> None:
    assert machine.version_tuple("1.9.2") < machine.version_tuple("1.19")


def test_percentiles_by_the_nearest_rank() -> None:
    """Of 1 .. 1000 ms the 50th percentile is the 500th value."""
    found = percentiles([n * 1_000_000 for n in range(1000, 0, -1)])
    assert found == {"p50": 500.0, "p90": 900.0, "p95": 950.0, "p99": 990.0}


@pytest.mark.parametrize("name", FEWEST)
def test_percentiles_below_the_fewest_queries_are_not_told(name: str) -> None:
    fewest = FEWEST[name]
    assert percentiles([1_000_000] * fewest)[name] == 1.0
    assert percentiles([1_000_000] * (fewest - 1))[name] is None


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("1.31.1", "", True),
        ("1.19.2", "1.19", True),
        ("1.18.9", "1.19", False),
        ("10.3.0.30", "==10.3", True),
        ("10.13", "==10.3", False),
        ("10", "==10.3", False),
        ("11.0", ">=10,<12", True),
        ("12.0", ">=10,<12", False),
        ("8.5.2.2", ">=10,<12", False),
        ("8.7", ">=8.7", True),
    ],
)
def test_a_specifier(version: str, specifier: str, fits: bool) -> None:
    assert machine.satisfies(version, specifier) is fits
