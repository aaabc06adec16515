"""Tags of wheels, held against those that `packaging` knows."""

from __future__ import annotations

import itertools
import sys

import pytest
from packaging.tags import compatible_tags, cpython_tags, sys_tags

from edgepack.runtime.errors import BundleError, DeviceError
from edgepack.runtime.wheels.tags import (
    Interpreter,
    Tags,
    describe_tags,
    interpreter,
    read_tags,
    require,
    this_python,
)

PYTHONS = ["py2", "py3", "py38", "py311", "py313", "cp27", "cp38", "cp310", "cp311", "cp312",
           "pp39"]  # fmt: skip
ABIS = ["none", "abi3", "cp38", "cp310", "cp311", "cp311t", "pypy39_pp73"]
PLATFORMS = ["any", "linux_aarch64", "linux_x86_64", "manylinux1_x86_64", "manylinux2014_aarch64",
             "manylinux_2_17_aarch64", "manylinux_2_28_aarch64", "manylinux_2_36_aarch64",
             "manylinux_2_28_x86_64", "musllinux_1_2_aarch64", "macosx_11_0_arm64",
             "win_amd64"]  # fmt: skip
DEBIAN_12 = Interpreter((3, 11), "aarch64", (2, 36), "cp311")


def fits(tag: tuple[str, str, str], here: Interpreter) -> bool:
    wheel = Tags("x", "1", *((part,) for part in tag))
    try:
        require([wheel], here)
    except DeviceError:
        return False
    return True


def test_what_runs_is_what_packaging_says() -> None:
    """On a CPython 3.11 of aarch64 with glibc 2.36."""
    platforms = ["linux_aarch64", "manylinux2014_aarch64"]
    platforms += [f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
    known = {
        (tag.interpreter, tag.abi, tag.platform)
        for tag in (
            *cpython_tags((3, 11), ["cp311"], platforms),
            *compatible_tags((3, 11), "cp311", platforms),
        )
    }
    # What has an ABI has a platform.
    asked = {
        tag for tag in itertools.product(PYTHONS, ABIS, PLATFORMS) if tag[1:] != (tag[1], "any")
    } | set(itertools.product(PYTHONS, ["none"], PLATFORMS))
    assert {tag for tag in asked if fits(tag, DEBIAN_12)} == asked & known
    assert len(asked & known) > 30


def test_this_python_runs_what_packaging_says() -> None:
    here = this_python()
    known = [(tag.interpreter, tag.abi, tag.platform) for tag in sys_tags()]
    assert known
    for tag in known:
        if "musllinux" not in tag[2]:
            assert fits(tag, here), tag
    assert here.version == sys.version_info[:2]


@pytest.mark.parametrize(
    "here",
    [
        Interpreter((3, 11), "aarch64", None, "cp311"),
        Interpreter((3, 11), "aarch64", (2, 17), "cp311"),
        Interpreter((3, 11), "aarch64", (2, 36), "cp311", bits=32),
        Interpreter((3, 11), "x86_64", (2, 36), "cp311"),
        Interpreter((3, 11), "aarch64", (2, 36), ""),
        Interpreter((3, 13), "aarch64", (2, 36), "cp313t"),
        Interpreter((3, 12), "aarch64", (2, 36), "cp312"),
    ],
    ids=["musl", "old glibc", "32 bits", "other arch", "PyPy", "no lock", "other version"],
)
def test_what_does_not_run_a_binary_wheel_runs_a_pure_one(here: Interpreter) -> None:
    assert fits(("cp311", "cp311", "manylinux_2_28_aarch64"), DEBIAN_12)
    assert not fits(("cp311", "cp311", "manylinux_2_28_aarch64"), here)
    assert fits(("py3", "none", "any"), here)


def test_the_error_names_both_pythons() -> None:
    wheels = [
        read_tags("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"),
        read_tags("onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_aarch64.whl"),
        read_tags("flatbuffers-25.12.19-py2.py3-none-any.whl"),
        read_tags("protobuf-7.36.2-cp310-abi3-manylinux2014_aarch64.whl"),
    ]
    require(wheels, DEBIAN_12)
    assert describe_tags(wheels) == "CPython 3.11 on aarch64, glibc 2.28 or newer"
    with pytest.raises(DeviceError) as caught:
        require(wheels, Interpreter((3, 8), "x86_64", (2, 31), "cp38"))
    assert caught.value.code == "wheels-python"
    assert caught.value.why.splitlines() == [
        "they are for CPython 3.11 on aarch64, glibc 2.28 or newer; "
        "this is CPython 3.8 on x86_64, glibc 2.31",
        "numpy 2.4.6 does not run here",
    ]
    with pytest.raises(DeviceError) as caught:
        require(wheels, Interpreter((3, 11), "aarch64", None, "cp311"))
    assert caught.value.code == "wheels-platform"
    assert "this is CPython 3.11 on aarch64, no glibc" in caught.value.why


def test_a_device_as_a_profile_states_it() -> None:
    found = interpreter("3.10", ["manylinux_2_28_aarch64", "manylinux2014_aarch64"])
    assert found == Interpreter((3, 10), "aarch64", (2, 28), "cp310")
    assert describe_tags([read_tags("x-1-py3-none-any.whl")]) == "any Python 3"


@pytest.mark.parametrize(
    "name", ["", "x.whl", "x-1-py3-none.whl", "../x-1-py3-none-any.whl", "x-1-py3-none-any.zip",
             "x-1-py3-none-any.whl\n"],
)  # fmt: skip
def test_a_name_that_is_not_a_wheel_s(name: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_tags(name)
    assert caught.value.code == "wheel-malformed"


def test_a_build_number_is_no_tag() -> None:
    found = read_tags("torch-2.1.0-1-cp310-cp310-linux_aarch64.whl")
    assert (found.version, found.pythons) == ("2.1.0", ("cp310",))
