"""The cache: the same key hits, whatever differs misses, and damage is never taken."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgepack import cache as module
from edgepack import files
from edgepack.cache import Cache
from edgepack.cli import cli
from edgepack.errors import HostError
from edgepack.runtime import temporary

PARTS = {"source": "abc", "opset": 18}


def test_an_entry_comes_back_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    key = cache.key("export", PARTS)
    assert cache.get("export", key) is None
    cache.put("export", key, {"model.onnx": b"bytes"}, {"notes": ["n"]})
    entry = Cache(tmp_path).get("export", key)
    assert entry is not None
    assert (entry.folder / "model.onnx").read_bytes() == b"bytes"
    assert entry.document == {"notes": ["n"]}


def test_whatever_differs_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    keys = {cache.key("export", PARTS), cache.key("simplify", PARTS)}
    keys.add(cache.key("export", {**PARTS, "opset": 17}))
    monkeypatch.setattr(module, "tool_versions", lambda: {"onnx": "0"})
    keys.add(cache.key("export", PARTS))
    monkeypatch.setattr(module, "hash_own_code", lambda: "other")
    keys.add(cache.key("export", PARTS))
    assert len(keys) == 5


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "index"])
def test_damage_misses_and_is_replaced(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    key = cache.key("export", PARTS)
    entry = cache.put("export", key, {"model.onnx": b"bytes"}, {})
    file = entry.folder / ("entry.json" if damage == "index" else "model.onnx")
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes({"flip": b"bytez", "cut": b"", "index": b"{"}[damage])
    assert cache.get("export", key) is None
    cache.put("export", key, {"model.onnx": b"bytes"}, {})
    assert cache.get("export", key) is not None


def test_refresh_takes_nothing_and_replaces(tmp_path: Path) -> None:
    key = Cache(tmp_path).key("export", PARTS)
    Cache(tmp_path).put("export", key, {"m": b"old"}, {})
    fresh = Cache(tmp_path, refresh=True)
    assert fresh.get("export", key) is None
    fresh.put("export", key, {"m": b"new"}, {})
    entry = Cache(tmp_path).get("export", key)
    assert entry is not None
    assert (entry.folder / "m").read_bytes() == b"new"


def test_clean_spares_what_was_used_lately(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old = cache.put("export", cache.key("export", {"n": 1}), {"m": b"1234"}, {})
    cache.put("export", cache.key("export", {"n": 2}), {"m": b"1"}, {})
    os.utime(old.folder, (time.time() - 9 * 86400,) * 2)
    del old
    cleaned = cache.clean(older_than_days=7)
    assert cleaned.entries == 1
    assert cleaned.bytes > 4
    assert len(cache.entries()) == 1
    assert cache.clean().entries == 1
    assert cache.size() == 0


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = Cache(blocked)
    with pytest.raises(HostError) as caught:
        cache.put("export", "k", {"m": b"1"}, {})
    assert caught.value.code == "output-unwritable"


def test_the_emulator_goes_only_when_it_is_named(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("export", cache.key("export", {}), {"m": b"1234"}, {})
    (tmp_path / "emulator" / "aarch64" / "root").mkdir(parents=True)
    (tmp_path / "emulator" / "aarch64" / "root" / "python3").write_bytes(b"x" * 1000)
    (tmp_path / "emulator" / "aarch64" / "link").symlink_to("root/python3")
    (tmp_path / "emulator" / "plugin.so").write_bytes(b"y" * 10)
    preparing, descriptor = temporary.create_folder(str(tmp_path / "emulator"))
    _, killed = temporary.create_folder(str(tmp_path / "emulator"))
    os.close(killed)
    assert sum(map(module.disk_usage, cache.emulator())) == 1010
    assert cache.clean().entries == 1
    assert len(cache.emulator()) == 4
    assert cache.clean(1, emulator=True) == (0, 0, 0)
    emulating = files.mark_in_use(tmp_path / "emulator" / "aarch64")
    assert cache.clean(emulator=True) == (1, 10, 1)
    emulating.close()
    assert cache.clean(emulator=True) == (1, 1000, 0)
    assert cache.emulator() == [Path(preparing)]
    os.close(descriptor)


USE = """
import sys
from pathlib import Path
from edgepack.cache import Cache
cache = Cache(Path(sys.argv[1]), refresh=len(sys.argv) > 2)
key = cache.key("original", {})
entry = cache.get("original", key)
if entry is None:
    entry = cache.put("original", key, {"answers": sys.argv[2].encode()}, {})
print(entry.folder, flush=True)
sys.stdin.read()
print((entry.folder / "answers").read_text())
"""


def use(folder: Path, *answers: str) -> subprocess.Popen[str]:
    """A process that uses an entry until its input ends; with answers, it computes them anew."""
    return subprocess.Popen(
        [sys.executable, "-c", USE, str(folder), *answers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_a_running_build_uses_is_neither_cleaned_nor_replaced(tmp_path: Path) -> None:
    """Two builds at once, one of them with --refresh, and `cache clean` between."""
    cache = Cache(tmp_path)
    key = cache.key("original", {})
    place = cache.put("original", key, {"answers": b"first"}, {}).folder
    reader = use(tmp_path)
    assert reader.stdout is not None
    assert Path(reader.stdout.readline().strip()) == place
    refresher = use(tmp_path, "second")
    assert refresher.stdout is not None
    private = Path(refresher.stdout.readline().strip())
    assert private != place
    assert cache.clean() == (0, 0, 1)
    assert reader.communicate() == ("first\n", None)
    assert refresher.communicate() == ("second\n", None)
    assert not private.exists()
    assert cache.clean().entries == 1
    assert cache.size() == 0


def test_the_private_entry_of_a_killed_build_is_cleaned(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.put("original", cache.key("original", {}), {"answers": b"first"}, {})
    refresher = use(tmp_path, "second")
    assert refresher.stdout is not None
    private = Path(refresher.stdout.readline().strip())
    assert private != entry.folder
    refresher.kill()
    refresher.communicate()
    assert private.exists()
    cache.clean()
    assert not private.exists()
    assert entry.folder.exists()


def test_where_the_file_system_has_no_locks_lately_used_entries_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    cache = Cache(tmp_path)
    old = cache.put("export", cache.key("export", {"n": 1}), {"m": b"1234"}, {})
    cache.put("export", cache.key("export", {"n": 2}), {"m": b"1"}, {})
    os.utime(old.folder, (time.time() - 2 * module.UNUSED,) * 2)
    assert cache.clean().entries == 1
    assert len(cache.entries()) == 1


def test_the_command_line_tells_of_the_emulator_and_deletes_it_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    (tmp_path / "emulator").mkdir()
    (tmp_path / "emulator" / "plugin.so").write_bytes(b"y" * 10)

    def ask(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(cli, ["cache", *arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        return json.loads(done.stdout)

    told = {"folder": str(tmp_path), "entries": 0, "bytes": 0}
    assert ask("info") == {**told, "emulator_bytes": 10}
    assert ask("clean") == {"entries": 0, "bytes": 0, "in_use": 0}
    assert ask("clean", "--emulator") == {"entries": 1, "bytes": 10, "in_use": 0}
    assert ask("info") == {**told, "emulator_bytes": 0}
