"""`setup`: the environment that it makes, again and again, killed and at the same time."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import bundle
from edgepack.runtime.bundle.engines import Variant
from edgepack.runtime.commands.setup import setup
from edgepack.runtime.errors import DeviceError
from support.bundle_cases import run_bundle
from support.linear import linear_contents
from support.wheel_cases import bundle_with, make_wheel

pytestmark = pytest.mark.slow

SITE = Path("lib") / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"
KILLED = -9


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A bundle with two wheels, one of them with files for places that are left out."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    files = {
        "good/__init__.py": b"from good.below import value\n",
        "good/below.py": b"value = 14\n",
        "good-1.0.data/platlib/good_native.py": b"native = True\n",
        "good-1.0.data/scripts/python3": b"#!python\nraise SystemExit('taken over')\n",
        "good-1.0.data/data/pyvenv.cfg": b"home = /elsewhere\n",
    }
    wheels = make_wheel(folder, "good", files=files), make_wheel(folder, "other", "2.0")
    return bundle_with(tmp_path / "x.edgepack", *wheels)


def says(python: Path, code: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(place: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every path below a folder: its inode, and what is in it."""
    return {
        str(path.relative_to(place)): (
            path.lstat().st_ino,
            str(path.readlink()) if path.is_symlink() else path.read_bytes(),
        )
        for path in place.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def test_what_it_makes(good: Path, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "env"
    done = run_bundle(good, "setup", str(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"ready: {place}",
        "has    good 1.0, other 2.0",
        f"next:  {place}/bin/python3 {good} verify",
    ]
    found = says(
        place / "bin" / "python3", "import good, good_native, sys; print(good.value, *sys.path[1:])"
    )
    assert found.startswith("14 ")
    # Its own packages and the standard library, and nothing that is installed here.
    assert found.split()[-1] == str(place / SITE)
    assert sum("site-packages" in path for path in found.split()) == 1
    code = "import importlib.metadata as m; print(m.version('good'), m.version('other'))"
    assert says(place / "bin" / "python", code) == "1.0 2.0"
    assert sorted(path.name for path in place.iterdir()) == [
        "bin", "edgepack.json", "lib", "pyvenv.cfg",
    ]  # fmt: skip
    assert sorted(path.name for path in (place / "bin").iterdir()) == ["python", "python3"]
    assert list(place.parent.iterdir()) == [place]


def test_pip_can_be_used_on_it(good: Path, tmp_path: Path) -> None:
    place = setup(str(good), str(tmp_path / "env"))["environment"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", place]
    listed = subprocess.run([*pip, "list", "--format", "json"], capture_output=True, check=True)
    assert {p["name"]: p["version"] for p in json.loads(listed.stdout)} == {
        "good": "1.0",
        "other": "2.0",
    }
    assert subprocess.run([*pip, "check"], capture_output=True).returncode == 0


def test_the_same_again_changes_nothing(good: Path, tmp_path: Path) -> None:
    place = tmp_path / "env"
    assert setup(str(good), str(place))["made"]
    before = state(place)
    assert not setup(str(good), str(place))["made"]
    assert state(place) == before
    done = run_bundle(good, "setup", str(place), "--json")
    assert json.loads(done.stdout)["made"] is False
    assert run_bundle(good, "setup", str(place)).stdout.startswith("ready, unchanged: ")


@pytest.mark.parametrize(
    "damage",
    [
        lambda env: (env / SITE / "other.py").unlink(),
        lambda env: (env / SITE / "other.py").write_bytes(b"version = '2.1'\n"),
        lambda env: (env / SITE / "other.py").write_bytes(b"version = '2.0'\nmore\n"),
        lambda env: (env / SITE / "other.py").write_bytes(b""),
        lambda env: (env / SITE / "other-2.0.dist-info" / "RECORD").write_bytes(b""),
        lambda env: shutil.rmtree(env / SITE / "good"),
        lambda env: (env / "bin" / "python3").unlink(),
        lambda env: (env / "pyvenv.cfg").write_text("home = /elsewhere\n"),
        lambda env: (env / "pyvenv.cfg").unlink(),
        lambda env: (shutil.rmtree(env / "lib"), (env / "lib").write_text("")),
    ],
)
def test_a_damaged_environment_is_made_anew(good: Path, tmp_path: Path, damage) -> None:
    place = tmp_path / "env"
    setup(str(good), str(place))
    damage(place)
    assert setup(str(good), str(place))["made"]
    assert not setup(str(good), str(place))["made"]
    assert says(place / "bin" / "python3", "import good, other; print(other.version)") == "2.0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["env", "wheels", "x.edgepack"]


def test_what_was_compiled_or_added_is_no_damage(good: Path, tmp_path: Path) -> None:
    place = tmp_path / "env"
    setup(str(good), str(place))
    says(place / "bin" / "python3", "import good")
    (place / SITE / "mine.py").touch()
    assert (place / SITE / "good" / "__pycache__").is_dir()
    assert not setup(str(good), str(place))["made"]


def test_other_wheels_take_the_place_of_the_old(good: Path, tmp_path: Path) -> None:
    place = tmp_path / "env"
    setup(str(good), str(place))
    newer = bundle_with(tmp_path / "y.edgepack", make_wheel(tmp_path, "other", "3.0"))
    assert setup(str(newer), str(place))["packages"] == {"other": "3.0"}
    assert says(place / "bin" / "python3", "import other; print(other.version)") == "3.0"
    assert not (place / SITE / "good").exists()


def test_an_empty_folder_is_taken(good: Path, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    assert setup(str(good), str(tmp_path / "env"))["made"]


def test_from_a_virtual_environment(good: Path, tmp_path: Path) -> None:
    """The interpreter behind it is linked, so that the environment may go."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    done = run_bundle(
        good, "setup", str(tmp_path / "env"), python=str(tmp_path / "venv" / "bin" / "python")
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "venv")
    assert says(tmp_path / "env" / "bin" / "python3", "import good; print(good.value)") == "14"


def test_where_tensorrt_runs_the_system_s_packages_are_seen(tmp_path: Path) -> None:
    """TensorRT's Python package is the system's, and of no wheel."""
    wheel = make_wheel(tmp_path, "good")
    for engine, seen in (("tensorrt", "true"), ("onnxruntime", "false")):
        path = tmp_path / f"{engine}.edgepack"
        variants = [Variant(engine, engine)]
        contents = replace(linear_contents(), variants=variants, wheels={wheel.name: wheel})
        bundle.write(path, contents)
        setup(str(path), str(tmp_path / engine))
        config = (tmp_path / engine / "pyvenv.cfg").read_text()
        assert f"include-system-site-packages = {seen}\n" in config


def test_two_at_once(good: Path, tmp_path: Path) -> None:
    new = tmp_path / ".env.new"
    new.mkdir()
    (new / "half").write_text("written")
    with (new / "edgepack.json").open("ab") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        with pytest.raises(DeviceError) as caught:
            setup(str(good), str(tmp_path / "env"))
        assert caught.value.code == "setup-running"
        assert (new / "half").read_text() == "written"
    assert setup(str(good), str(tmp_path / "env"))["made"]
    assert not new.exists()
    assert not (tmp_path / "env" / "half").exists()


@pytest.fixture(scope="module")
def strace() -> str:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed: apt-get install strace")
    probe = subprocess.run(
        [program, "-o", "/dev/null", "-e", "trace=sync", "-e", "inject=sync:error=EIO", "true"],
        capture_output=True, text=True,
    )  # fmt: skip
    if probe.returncode != 0:
        pytest.skip(f"strace cannot trace here: {probe.stderr.strip()}")
    return program


def injected(strace: str, fault: str, path: Path, place: Path) -> subprocess.CompletedProcess[str]:
    kind = fault.partition(":")[0]
    trace = [strace, "-f", "-o", "/dev/null", "-e", f"trace={kind}", "-e", f"inject={fault}"]
    command = [sys.executable, "-B", str(path), "setup", str(place)]
    return subprocess.run([*trace, *command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", ["rename", "sync", "symlink", "flock", "write"])
def test_killed_at_any_place(strace: str, good: Path, tmp_path: Path, kind: str) -> None:
    """What stands there is whole, the old or the new one; only between two renames it is neither.

    The next `setup` works in any case, and leaves nothing else.
    """
    older = bundle_with(
        tmp_path / "wheels" / "old.edgepack", make_wheel(tmp_path / "wheels", "old")
    )
    place = tmp_path / "env"
    killed = 0
    for n in itertools.count(1):
        setup(str(older), str(place))
        done = injected(strace, f"{kind}:signal=SIGKILL:when={n}", good, place)
        if done.returncode == 0:
            break
        assert done.returncode == KILLED, done.stderr
        killed += 1
        if place.exists():
            before = says(place / "bin" / "python3", "import importlib.metadata as m; "
                          "print(*sorted(d.name for d in m.distributions()))")  # fmt: skip
            assert before in ("old", "good other")
        else:
            assert (kind, n) == ("rename", 2)
        assert setup(str(good), str(place))["environment"] == str(place)
        assert not setup(str(good), str(place))["made"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["env", "wheels", "x.edgepack"]
    assert killed >= {"rename": 2, "sync": 2, "symlink": 2, "flock": 1, "write": 8}[kind]


@pytest.mark.parametrize(
    ("kind", "number"),
    [("write", 1), ("write", 5), ("mkdir", 2), ("mkdir", 4), ("symlink", 1), ("rename", 1),
     ("rename", 2)],
)  # fmt: skip
def test_a_full_disk(strace: str, good: Path, tmp_path: Path, kind: str, number: int) -> None:
    older = bundle_with(
        tmp_path / "wheels" / "old.edgepack", make_wheel(tmp_path / "wheels", "old")
    )
    place = tmp_path / "env"
    setup(str(older), str(place))
    before = state(place)
    done = injected(strace, f"{kind}:error=ENOSPC:when={number}", good, place)
    assert done.returncode == 2
    assert "error[setup-full]" in done.stderr
    assert "Traceback" not in done.stderr
    assert state(place) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["env", "wheels", "x.edgepack"]
