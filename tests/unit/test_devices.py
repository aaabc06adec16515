"""Profiles named after devices: families, guides, suggestions."""

from __future__ import annotations

import pytest

from edgepack.device.cpus import CPUS
from edgepack.errors import SpecError
from edgepack.spec import target, toml_reader
from support import ROOT
from support.build_cases import ask

FIVE = {"cpu-fbgemm", "arm-qnnpack", "cuda-fp16", "tensorrt-int8", "jetson-trt"}
NAMES = sorted(target.shipped())


def test_devices_are_listed_under_the_profile_that_they_extend() -> None:
    families = target.list_families()
    assert set(families) == FIVE
    for base, family in families.items():
        assert family[0].name == base
        assert all(profile.base == base for profile in family[1:])
    assert sorted(profile.name for family in families.values() for profile in family) == NAMES
    answer = ask("targets", "list")
    assert [entry["name"] for entry in answer.document][:2] == ["arm-qnnpack", "raspberry-pi-3"]


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_has_a_guide_and_emulates_cpus_of_its_processor(name: str) -> None:
    profile = target.load(name)
    assert profile.summary
    assert (ROOT / profile.guide).is_file()
    assert all(CPUS[cpu].arch == profile.arch for cpu in profile.emulate)
    for cpu in profile.emulate:
        features = {**CPUS[cpu].cpuinfo}.get("Features") or CPUS[cpu].cpuinfo["flags"]
        assert set(profile.isa) <= set(features.split()), cpu


@pytest.mark.parametrize("name", sorted(set(NAMES) - FIVE))
def test_a_device_states_only_what_differs(name: str) -> None:
    own = toml_reader.read(target.shipped()[name])
    base = target.read(target.shipped()[str(own["extends"])])
    for table in ("device", "engine", "chain", "emulate"):
        values = own.get(table, {})
        assert isinstance(values, dict)
        for key, value in values.items():
            assert base[table].get(key) != value, (table, key)  # type: ignore[attr-defined]
    page = (ROOT / "docs/guides/devices.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rpi5", "raspberry-pi-5"),
        ("pi-4", "raspberry-pi-4"),
        ("jetson-orin-nano", "orin-nano"),
        ("raspberypi-3", "raspberry-pi-3"),
        ("JP7", "jetson-jp7"),
        ("laptp", "laptop"),
    ],
)
def test_a_close_name_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(SpecError) as caught:
        target.load(typed)
    assert caught.value.code == "target-unknown"
    assert f"did you mean {meant!r}?" in caught.value.why


def test_a_list_of_names_is_told_to_repeat_the_option() -> None:
    with pytest.raises(SpecError) as caught:
        target.load("raspberry-pi-4,laptop")
    assert "--target raspberry-pi-4 --target laptop" in caught.value.hint
