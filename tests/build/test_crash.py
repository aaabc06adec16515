"""A build killed, or refused by the disk, at every place where it makes something durable.

strace puts the fault at the N-th call of its kind that the build's own process makes, N from 1
until a build gets through. Whatever happened, the bundle that stood at the output is whole, the
older one or the new one, and a plain build works afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from support.build_cases import Home, build, digest_of, one_document
from support.bundle_cases import run_bundle

KILLED = -9


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed: apt-get install strace")
    log = str(tmp_path_factory.mktemp("strace") / "log")
    probe = subprocess.run(
        [program, "-o", log, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "true"],
        capture_output=True, text=True,
    )  # fmt: skip
    if probe.returncode != 0:
        pytest.skip(f"strace cannot trace here: {probe.stderr.strip()}")
    return program


@dataclass(frozen=True)
class Scene:
    """A place with an older bundle in it, and a build that would replace it."""

    strace: str
    home: Home
    output: Path
    older: bytes
    newer: str
    cache: Path
    log: Path

    def shown(self, path: str) -> str:
        """Return a path of a build with the scene's folder written as "."."""
        return path.replace(str(self.cache.parent), ".")

    @property
    def scratch(self) -> Path:
        """The folder of temporary files, of these builds alone."""
        return self.cache.parent / "tmp"

    def arguments(self) -> list[str]:
        evaluation = ["--evaluation", self.home / "evaluation.npz"]
        return self.home.build("tiny.onnx", *evaluation, "--output", str(self.output), "-q",
                               "--json")  # fmt: skip

    def run(self, inject: str = "") -> subprocess.CompletedProcess[str]:
        """A build with a fault in it, as `strace -e inject` writes one; "" for none.

        Only the build's own process is traced: the loader's temporary files are not at stake.
        """
        traced = [self.strace, "-y", "-o", str(self.log), "-e", "trace=rename,fsync,write"]
        command = [sys.executable, "-m", "edgepack", *self.arguments()]
        return subprocess.run(
            [*traced, "-e", f"inject={inject}", *command] if inject else [*traced, *command],
            env={
                **os.environ, "EDGEPACK_CACHE": str(self.cache), "TMPDIR": str(self.scratch)
            },
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def calls(self) -> list[tuple[str, str]]:
        """What the last build did, in order: the kind of each call, and the path it was about."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            call = re.match(r'(\w+)\((?:\d+<(.*?)>|"(.*?)")', line)
            if call:
                found.append((call[1], self.shown(call[2] or call[3])))
        return found

    def old_or_new(self) -> str:
        """Which bundle stands there. Fails where it is neither, or not whole."""
        if self.output.read_bytes() == self.older:
            return "old"
        assert digest_of(self.output) == self.newer
        return "new"

    def holds(self) -> bool:
        """Return whether the hash beside the bundle is that of the bundle."""
        command = ["sha256sum", "--check", "--status", f"{self.output.name}.sha256"]
        return subprocess.run(command, cwd=self.output.parent).returncode == 0

    def left_over(self) -> list[str]:
        names = {path.name for path in self.output.parent.iterdir()}
        return sorted(names - {self.output.name, f"{self.output.name}.sha256"})

    def restore(self) -> None:
        """As it was at first, but for the cache."""
        for path in self.output.parent.iterdir():
            path.unlink()
        self.output.write_bytes(self.older)
        line = f"{hashlib.sha256(self.older).hexdigest()}  {self.output.name}\n"
        Path(f"{self.output}.sha256").write_text(line)


@pytest.fixture(scope="module")
def first(strace: str, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The two bundles, and the cache that building them left."""
    folder = tmp_path_factory.mktemp("first")
    output, cache = folder / "x.edgepack", folder / "cache"
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(cache))
        build(arguments, output)
        newer = digest_of(output)
        build([*arguments, "--chain", "none"], output)
    assert digest_of(output) != newer
    return Scene(strace, home, output, output.read_bytes(), newer, cache, folder / "log")


@pytest.fixture
def scene(first: Scene, tmp_path: Path) -> Scene:
    return make_scene(first, tmp_path)


def make_scene(first: Scene, folder: Path) -> Scene:
    (folder / "out").mkdir()
    (folder / "tmp").mkdir()
    shutil.copytree(first.cache, folder / "cache")
    scene = replace(
        first, output=folder / "out" / "x.edgepack", cache=folder / "cache", log=folder / "log"
    )
    scene.restore()
    return scene


@pytest.fixture(scope="module")
def calls(first: Scene, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What a build with a cache does, from `Scene.calls`."""
    scene = make_scene(first, tmp_path_factory.mktemp("warm"))
    assert scene.run().returncode == 0
    return scene.calls()


@pytest.fixture(scope="module")
def cold_calls(first: Scene, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What a build without a cache does, from `Scene.calls`."""
    scene = make_scene(first, tmp_path_factory.mktemp("cold"))
    shutil.rmtree(scene.cache)
    assert scene.run().returncode == 0
    return scene.calls()


@pytest.fixture
def cold(scene: Scene) -> Scene:
    """The same without a cache, so that the stages are written too."""
    shutil.rmtree(scene.cache)
    return scene


def killed_at_each(
    scene: Scene, kind: str, fresh: bool, numbers: Iterable[int] = ()
) -> Iterator[tuple[int, str, str]]:
    """Kill at the first call of a kind, the second, ..., until a build gets through.

    Gives the number, the path that the call was about, and which bundle stood there afterwards.
    With `numbers`, only at those.
    """
    for n in numbers or itertools.count(1):
        scene.restore()
        if fresh:
            shutil.rmtree(scene.cache, ignore_errors=True)
        done = scene.run(f"{kind}:signal=SIGKILL:when={n}")
        calls = [path for name, path in scene.calls() if name == kind]
        if done.returncode == 0:
            assert len(calls) < n
            assert scene.old_or_new() == "new"
            assert scene.holds()
            return
        assert done.returncode == KILLED, done.stderr
        assert len(calls) == n
        stands = scene.old_or_new()
        # The newer bundle may stand beside the hash of the older, which then refuses it.
        assert scene.holds() or stands == "new"
        yield n, calls[-1], stands


def works_afterwards(scene: Scene) -> None:
    """A build with another output replaces nothing, and leaves none of what killed ones left."""
    sweeps(scene)
    builds(scene)


def sweeps(scene: Scene) -> None:
    other = replace(scene, output=scene.output.with_name("other.edgepack"))
    done = other.run()
    assert done.returncode == 0, done.stderr
    written = ["other.edgepack", "other.edgepack.sha256"]
    assert scene.left_over() == written
    assert list(scene.scratch.iterdir()) == []
    assert not list(scene.cache.glob("stages/*/.*"))
    for name in written:
        other.output.with_name(name).unlink()


def builds(scene: Scene) -> None:
    done = scene.run()
    assert done.returncode == 0, done.stderr
    assert scene.old_or_new() == "new"
    assert json.loads(run_bundle(scene.output, "verify", "--json").stdout)["passed"]


def test_killed_at_renames(cold: Scene, cold_calls: list[tuple[str, str]]) -> None:
    paths = [path for kind, path in cold_calls if kind == "rename"]
    # Six stages into the cache, and the evaluations of two of their graphs; then the bundle into
    # its place, and its hash after it. A build killed at the bundle's rename has not replaced it.
    assert [Path(path).parent.name for path in paths[:8]] == [
        "identity", "original", "sizes", "export", "simplify", "evaluation", "quantize",
        "evaluation",
    ]  # fmt: skip
    assert [path.endswith(".tmp") for path in paths[8:]] == [True, True]
    # Entries of the cache are renamed by the same code: the first, one between, and the last.
    points = list(killed_at_each(cold, "rename", fresh=True, numbers=(1, 4, 8, 9, 10)))
    assert [state for _, _, state in points] == ["old"] * 4 + ["new"]
    works_afterwards(cold)


def test_killed_at_fsyncs_of_the_cache(cold: Scene, cold_calls: list[tuple[str, str]]) -> None:
    """The files of an entry, its folder, and the folder above.

    The first stage's are all tried. All stages write by the same code, so of every other later one
    it is the first call, the second, and so on in turn.
    """
    paths = [path for kind, path in cold_calls if kind == "fsync"]
    stages: dict[str, list[int]] = {}
    for n, path in enumerate(paths, 1):
        match = re.match(r"\./cache/stages/(\w+)", path)
        if match:
            stages.setdefault(match[1], []).append(n)
    first, *others = stages.values()
    assert len(first) >= 4
    assert len(others) >= 5
    numbers = [*first]
    for turn, calls in enumerate(others[::2]):
        numbers.append(calls[turn % len(calls)])
    points = list(killed_at_each(cold, "fsync", fresh=True, numbers=numbers))
    assert {found for _, _, found in points} == {"old"}
    works_afterwards(cold)


def test_killed_at_fsyncs_of_the_bundle(scene: Scene, calls: list[tuple[str, str]]) -> None:
    paths = [path for kind, path in calls if kind == "fsync"]
    temporary = [n for n, path in enumerate(paths, 1) if path.endswith(".tmp")]
    folder = [n for n, path in enumerate(paths, 1) if path == "./out"]
    # Draft, with its answers, with its summary, finished (up to four times, since the report
    # states the size of the file that it is in), its hash, about to be published.
    assert 5 <= len(temporary) <= 9
    # All of them write the same file in the same way: the draft, one in the middle, and the last
    # two, which are of the finished bundle and of its hash.
    tried = [temporary[0], temporary[len(temporary) // 2], *temporary[-2:]]
    points = list(killed_at_each(scene, "fsync", fresh=False, numbers=[*tried, *folder]))
    # After the renames: the new one is in its place.
    assert [found for _, _, found in points] == ["old"] * 4 + ["new"] * 2
    works_afterwards(scene)


def test_killed_at_writes_of_the_bundle(scene: Scene, calls: list[tuple[str, str]]) -> None:
    writes = [path for kind, path in calls if kind == "write"]
    numbers = [n for n, path in enumerate(writes, 1) if path.endswith(".tmp")]
    assert len(numbers) > 50
    for n in [numbers[0], *numbers[5 :: len(numbers) // 3], numbers[-1]]:
        scene.restore()
        done = scene.run(f"write:signal=SIGKILL:when={n}")
        assert done.returncode == KILLED, done.stderr
        assert scene.old_or_new() == "old", n
    works_afterwards(scene)


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("write", "ENOSPC", "disk-full"),
        ("fsync", "EIO", "output-unwritable"),
        ("rename", "EACCES", "output-unwritable"),
    ],
)
def test_the_disk_refuses(
    scene: Scene, kind: str, error: str, code: str, calls: list[tuple[str, str]]
) -> None:
    paths = [path for name, path in calls if name == kind]
    numbers = [n for n, path in enumerate(paths, 1) if path.endswith(".tmp")]
    if kind == "rename":
        # The last one puts the hash in its place, after the bundle.
        numbers.pop()
    for n in dict.fromkeys((numbers[0], numbers[-1])):
        scene.restore()
        done = scene.run(f"{kind}:error={error}:when={n}")
        assert done.returncode == 2, done.stderr
        assert one_document(done.stdout)["error"]["code"] == code
        assert "Traceback" not in done.stderr
        assert scene.old_or_new() == "old"
        assert scene.left_over() == []
    builds(scene)


def test_the_hash_cannot_be_put_in_its_place(scene: Scene, calls: list[tuple[str, str]]) -> None:
    renames = [path for name, path in calls if name == "rename"]
    done = scene.run(f"rename:error=EACCES:when={len(renames)}")
    assert done.returncode == 2
    found = one_document(done.stdout)["error"]
    assert (found["code"], scene.old_or_new()) == ("output-unwritable", "new")
    assert f"{scene.output.name}.sha256" in found["what"]
    # The hash of the older bundle stands there yet, and no bundle passes beside it.
    assert not scene.holds()
    done = run_bundle(scene.output, "verify", "--json")
    assert done.returncode == 2
    assert one_document(done.stdout)["error"]["code"] == "bundle-checksum"
    builds(scene)


@pytest.mark.parametrize(("kind", "nth"), [("write", 1), ("fsync", 1), ("rename", 2)])
def test_the_cache_cannot_be_written(
    cold: Scene, kind: str, nth: int, cold_calls: list[tuple[str, str]]
) -> None:
    """The first write of an entry, or another call: the calls before are on temporary files."""
    paths = [path for name, path in cold_calls if name == kind]
    when = [n for n, path in enumerate(paths, 1) if path.startswith("./cache/")][nth - 1]
    done = cold.run(f"{kind}:error=ENOSPC:when={when}")
    assert done.returncode == 2, done.stderr
    found = one_document(done.stdout)["error"]
    assert found["code"] == "disk-full"
    assert str(cold.cache) in found["what"]
    assert "Traceback" not in done.stderr
    assert cold.old_or_new() == "old"
    assert cold.left_over() == []
    builds(cold)


def mounted(folder: Path, size: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a small file system of its own mounted on a folder."""
    if os.geteuid() != 0:
        pytest.skip("not root: no file system can be mounted")
    script = f'mount -t tmpfs -o size={size} edgepack "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "-", str(folder), *command],
        capture_output=True, text=True,
    )  # fmt: skip
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"this kernel mounts nothing: {done.stderr.splitlines()[0]}")
    return done


@pytest.mark.parametrize("full", ["output", "cache", "temporary"])
def test_a_disk_that_is_really_full(home: Home, tmp_path: Path, full: str) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    output = (folder if full == "output" else tmp_path) / "x.edgepack"
    cache = (folder if full == "cache" else tmp_path) / "cache"
    arguments = home.build("tiny.onnx", "--output", str(output), "--json", "-q")
    environment = [f"EDGEPACK_CACHE={cache}"]
    if full == "temporary":
        environment.append(f"TMPDIR={folder}")
    size = "8k" if full == "temporary" else "24k"
    done = mounted(folder, size, "env", *environment, "sh", "-c",
                   '"$@"; status=$?; ls -A "$0" >&2; exit $status', str(folder),
                   sys.executable, "-m", "edgepack", *arguments)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    code = one_document(done.stdout)["error"]["code"]
    if full == "temporary":
        # The loader finds no room for its answers, and says so itself.
        assert code in ("disk-full", "output-unwritable", "loader-died")
    else:
        assert code == "disk-full"
    assert ".tmp" not in done.stderr
    assert not output.exists()
