"""`edgepack build --wheels`: the same bundle, and what its device needs to import."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import check_all, read_index
from edgepack.runtime.device.machine import describe
from edgepack.spec import target
from support.build_cases import Answer, Home, ask, build, digest_of, edgepack
from support.bundle_cases import run_bundle

HERE = ".".join(platform.python_version_tuple()[:2])
pytestmark = pytest.mark.skipif(
    describe()["arch"] != "x86_64", reason="the profile's wheels are for x86-64"
)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cpu-fbgemm, for a device with this Python."""
    path = tmp_path_factory.mktemp("profile") / "mine.toml"
    path.write_text(f'schema = 1\nextends = "cpu-fbgemm"\n[wheels]\npython = "{HERE}"\n')
    return path


def arguments(home: Home, profile: Path) -> list[str]:
    found = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    found[found.index("cpu-fbgemm")] = str(profile)
    return found


@pytest.fixture(scope="module")
def carrying(
    home: Home, profile: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Answer]:
    """A bundle with wheels, and what its build said."""
    output = tmp_path_factory.mktemp("carrying") / "x.edgepack"
    answer = ask(*arguments(home, profile), "--wheels", "--output", str(output))
    if answer.code == "wheels-offline":
        pytest.skip("nothing can be downloaded")
    assert answer.status == 0, answer.stderr
    return output, answer


def contents(path: Path) -> dict[str, tuple[str, int]]:
    with Archive(str(path)) as archive:
        index = read_index(archive)
        check_all(archive, index)
        return dict(index.files)


def test_it_is_the_same_bundle_otherwise(
    carrying: tuple[Path, Answer], home: Home, profile: Path, tmp_path: Path
) -> None:
    with_wheels, without = carrying[0], tmp_path / "y.edgepack"
    build(arguments(home, profile), without)
    extra = {n: v for n, v in contents(with_wheels).items() if n.startswith("wheels/")}
    # Only a bundle with wheels carries the part of the loader that installs them.
    others = ("wheels/", "runtime/wheels/", "runtime/commands/setup.py", "report/")
    rest = {n: v for n, v in contents(with_wheels).items() if not n.startswith(others)}
    assert rest == {n: v for n, v in contents(without).items() if not n.startswith(others)}
    assert {"numpy", "onnxruntime"} <= {name.split("/")[1].split("-")[0] for name in extra}
    assert "wheels/requirements.txt" in extra
    # They are content: another set of wheels is another bundle.
    assert digest_of(with_wheels) != digest_of(without)


def test_the_same_again_has_the_same_digest(
    carrying: tuple[Path, Answer], home: Home, profile: Path, tmp_path: Path
) -> None:
    answer = build(arguments(home, profile), tmp_path / "y.edgepack", "--wheels")
    assert answer.stage("wheels")["status"] == "cached"
    assert digest_of(tmp_path / "y.edgepack") == digest_of(carrying[0])


def test_the_report_says_what_came(carrying: tuple[Path, Answer]) -> None:
    path, answer = carrying
    record = answer.stage("wheels")
    assert record["status"] == "done"
    assert record["notes"][0].endswith(f", for CPython {HERE} on x86_64, glibc 2.28 or newer")
    assert answer.document["ledger"][2] == record
    assert record["details"]["bytes"] == sum(
        size for name, (_, size) in contents(path).items() if name.startswith("wheels/")
    )
    assert answer.document["bundle"]["bytes"] == path.stat().st_size


def test_what_it_was_built_for(carrying: tuple[Path, Answer], tmp_path: Path) -> None:
    path = carrying[0]
    assert "python3 BUNDLE setup DIR" in run_bundle(path, "info").stdout
    bare = [sys.executable, "-I", "-S", str(path)]
    done = subprocess.run([*bare, "setup", str(tmp_path / "env")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    python = str(tmp_path / "env" / "bin" / "python3")
    done = run_bundle(path, "verify", "--json", python=python)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fidelity"]["outputs"]["scores"]["bit_exact"]


def test_a_dry_run_names_the_stage(home: Home, profile: Path) -> None:
    planned = ask(*arguments(home, profile), "--wheels", "--dry-run").document
    assert planned["stages"][2] == "wheels"
    assert "wheels" not in ask(*arguments(home, profile), "--dry-run").document["stages"]


def test_a_profile_without_wheels(home: Home, tmp_path: Path) -> None:
    """Told before the model is looked at."""
    profile = tmp_path / "none.toml"
    written = target.find("cpu-fbgemm").read_text()
    profile.write_text(written[: written.index("[wheels]")])
    found = ["build", home / "absent.onnx", "--target", str(profile), "--wheels"]
    answer = ask(*found, "--output", str(tmp_path / "x.edgepack"))
    assert (answer.status, answer.code) == (2, "wheels-unknown")
    assert not (tmp_path / "x.edgepack").exists()


@pytest.mark.parametrize("python", ["3", "3.11.2", "2.7", "three"])
def test_a_python_that_no_wheel_is_for(tmp_path: Path, python: str) -> None:
    profile = tmp_path / "wrong.toml"
    profile.write_text(f'schema = 1\nextends = "cpu-fbgemm"\n[wheels]\npython = "{python}"\n')
    answer = ask("targets", "check", str(profile))
    assert (answer.status, answer.code) == (2, "target-invalid")
    assert "wheels.python" in answer.document["error"]["why"]


def test_without_a_network_nothing_is_built(home: Home, profile: Path, tmp_path: Path) -> None:
    """And nothing is computed: that the wheels cannot be had is found first."""
    output = tmp_path / "x.edgepack"
    output.write_bytes(b"what was there before")
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "",
               "PIP_FIND_LINKS": "", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": "/dev/null",
               "EDGEPACK_CACHE": str(tmp_path / "cache")}  # fmt: skip
    done = edgepack(*arguments(home, profile), "--wheels", "--output", str(output), "--json",
                    env=offline)  # fmt: skip
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "wheels-offline"
    assert f"Python {HERE} on manylinux_2_28_x86_64" in error["what"]
    assert output.read_bytes() == b"what was there before"
    assert not list((tmp_path / "cache").glob("stages/*/*"))
