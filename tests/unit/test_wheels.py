"""`--wheels`: what a device needs, found and fetched by the real pip from a folder of wheels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack.bundle import wheels
from edgepack.cache import Cache
from edgepack.errors import BundleError, HostError, SpecError
from edgepack.spec import target
from edgepack.spec.target import Target
from support.wheel_cases import entries_of, make_wheel, write_zip

ARM = replace(target.load("arm-qnnpack"), wheel_python="3.8")
HERE = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def fetch(folder: Path, requirements: str, device: Target = ARM, **options: bool) -> wheels.Wheels:
    return wheels.fetch(device, requirements, Cache(folder / "cache", **options))


def refuse(folder: Path, requirements: str, device: Target = ARM) -> HostError:
    """Nothing is left in the cache."""
    with pytest.raises(HostError) as caught:
        fetch(folder, requirements, device)
    assert caught.value.why
    assert caught.value.hint
    assert not Cache(folder / "cache").entries()
    return caught.value


def test_markers_are_those_of_the_device(index: Path, tmp_path: Path) -> None:
    """pip reads them as this host's; only its choice of wheels is the device's."""
    make_wheel(index, "app", requires=[
        "dep",
        "old>=1; python_version < '3.9'",
        "new; python_version >= '3.9'",
        "windows; sys_platform == 'win32'",
        "arm[fast]; platform_machine == 'aarch64'",
        "x86; platform_machine == 'x86_64'",
        "extra; extra == 'more'",
    ])  # fmt: skip
    make_wheel(index, "dep", requires=["deep; python_full_version < '3.9.0'"])
    make_wheel(index, "arm", requires=["faster; extra == 'fast'", "slower; extra == 'slow'"])
    for name in ("old", "new", "windows", "x86", "extra", "deep", "faster", "slower", "another"):
        make_wheel(index, name)
    found = fetch(tmp_path, "# the device\napp==1.0; python_version < '3.9'\n\n"
                  "another==1.0; python_version >= '3.9'  # not there\n")  # fmt: skip
    assert sorted(found.packages) == ["app", "arm", "deep", "dep", "faster", "old"]
    assert sorted(found.files) == sorted(
        [*(f"{name}-1.0-py3-none-any.whl" for name in found.packages), "requirements.txt"]
    )


def test_a_version_that_the_device_needs_another_of(index: Path, tmp_path: Path) -> None:
    """What satisfies this host's marker need not satisfy the device's."""
    make_wheel(index, "app", requires=[
        "dep>=1; python_version >= '3.9'", "dep<2; python_version < '3.9'"
    ])  # fmt: skip
    make_wheel(index, "dep", "1.0")
    make_wheel(index, "dep", "2.0")
    assert fetch(tmp_path, "app==1.0\n").packages["dep"] == "1.0"


def test_wheels_are_of_the_platform(index: Path, tmp_path: Path) -> None:
    for tag in ("cp38-cp38-manylinux_2_28_aarch64", "cp38-cp38-manylinux_2_28_x86_64",
                "cp311-cp311-manylinux_2_28_aarch64",
                "cp38-cp38-musllinux_1_2_aarch64"):  # fmt: skip
        make_wheel(index, "native", tag=tag)
    found = fetch(tmp_path, "native\n")
    assert found.python == "CPython 3.8 on aarch64, glibc 2.28 or newer"
    assert sorted(found.files) == [
        "native-1.0-cp38-cp38-manylinux_2_28_aarch64.whl",
        "requirements.txt",
    ]


def test_the_requirements_carry_versions_and_hashes(index: Path, tmp_path: Path) -> None:
    """As pip takes them, where a device has it."""
    make_wheel(index, "App_Name", requires=["dep"])
    make_wheel(index, "dep")
    device = replace(ARM, wheel_python=HERE)
    found = fetch(tmp_path, "app.name\n", device)
    lines = found.files["requirements.txt"].read_text().splitlines()
    hashes = {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.files.items()
    }
    assert lines == [
        f"app-name==1.0 --hash=sha256:{hashes['App_Name-1.0-py3-none-any.whl']}",
        f"dep==1.0 --hash=sha256:{hashes['dep-1.0-py3-none-any.whl']}",
    ]
    folder = found.files["requirements.txt"].parent
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index",
         "--require-hashes", "--find-links", folder, "--target", tmp_path / "site",
         "--requirement", folder / "requirements.txt"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "dep.py").is_file()


def test_what_was_fetched_is_kept(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "app", requires=["dep"])
    make_wheel(index, "dep", "1.0")
    first = fetch(tmp_path, "app\n")
    make_wheel(index, "dep", "2.0")
    again = fetch(tmp_path, "app\n")
    assert (first.cached, again.cached) == (False, True)
    assert again.files == first.files
    assert fetch(tmp_path, "app\n", refresh=True).packages["dep"] == "2.0"
    assert not fetch(tmp_path, "app\n", replace(ARM, wheel_python="3.9")).cached
    first.files["dep-2.0-py3-none-any.whl" if False else "app-1.0-py3-none-any.whl"].write_bytes(
        b""
    )
    assert not fetch(tmp_path, "app\n").cached


def test_no_wheel_for_the_platform(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "app", requires=["native"])
    make_wheel(index, "native", tag="cp38-cp38-manylinux_2_28_x86_64")
    (index / "native-1.0.tar.gz").write_bytes(b"a source distribution, which would run code")
    error = refuse(tmp_path, "app==1.0\n")
    assert error.code == "wheels-none"
    assert error.what.startswith(
        "there is no wheel of native for Python 3.8 on manylinux_2_28_aarch64, "
    )
    assert "No matching distribution found for native" in error.why


def test_versions_that_contradict_each_other(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "app", requires=["dep<2"])
    make_wheel(index, "dep", "1.0")
    make_wheel(index, "dep", "2.0")
    error = refuse(tmp_path, "app\ndep>=2\n")
    assert error.code == "wheels-failed"
    assert "conflicting dependencies" in error.why


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = refuse(tmp_path, "numpy==1.24.4\n")
    assert error.code == "wheels-offline"
    assert "Python 3.8 on manylinux_2_28_aarch64" in error.what


def test_without_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    error = refuse(tmp_path, "app\n")
    assert error.code == "pip-missing"
    assert "No module named pip" in error.why


def test_a_wheel_that_the_device_would_refuse(index: Path, tmp_path: Path) -> None:
    entries = entries_of("app", "1.0", {"app.py": b"as RECORD has it"})
    entries["app.py"] = b"another thing here"
    write_zip(index / "app-1.0-py3-none-any.whl", entries)
    with pytest.raises(BundleError) as caught:
        fetch(tmp_path, "app\n")
    assert caught.value.code == "wheel-malformed"
    assert not Cache(tmp_path / "cache").entries()


def test_two_builds_of_one_package(index: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        make_wheel(index, name, files={"onnxruntime/__init__.py": name.encode()})
    with pytest.raises(BundleError) as caught:
        fetch(tmp_path, "onnxruntime\nonnxruntime-gpu\n")
    assert caught.value.code == "wheels-clash"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"wheel_platforms": (), "wheel_python": ""}, "wheels-unknown"),
        ({"wheel_platforms": ("manylinux_2_28_x86_64",)}, "wheels-platform"),
        ({"arch": "x86_64"}, "wheels-platform"),
    ],
)
def test_a_profile_that_does_not_say_which(change: dict[str, object], code: str) -> None:
    wheels.check(ARM)
    with pytest.raises(SpecError) as caught:
        wheels.check(replace(ARM, **change))
    assert caught.value.code == code


@pytest.mark.parametrize("name", sorted(target.shipped()))
def test_the_shipped_profiles_name_their_wheels(name: str) -> None:
    wheels.check(target.load(name))
