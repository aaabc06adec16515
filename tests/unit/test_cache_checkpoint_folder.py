"""Where a long stage leaves what it has so far."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgepack.cache import Cache
from edgepack.errors import HostError


def interrupted(cache: Cache) -> Path:
    """A stage that was ended in the middle of its work; its folder."""
    with pytest.raises(KeyboardInterrupt):
        _interrupted(cache)
    (work,) = (cache.folder / "stages" / "distill").iterdir()
    return work


def _interrupted(cache: Cache) -> None:
    with cache.checkpoint_folder("distill", "k") as work:
        (work / "half").write_text("so far")
        raise KeyboardInterrupt


def test_what_a_killed_stage_left_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    interrupted(cache)
    with cache.checkpoint_folder("distill", "other") as work:
        assert not (work / "half").exists()
    with cache.checkpoint_folder("distill", "k") as work:
        assert (work / "half").read_text() == "so far"
    assert not work.exists()
    assert cache.entries() == []


def test_who_computes_anew_finds_nothing(tmp_path: Path) -> None:
    work = interrupted(Cache(tmp_path))
    with Cache(tmp_path, refresh=True).checkpoint_folder("distill", "k") as other:
        assert other != work
        assert list(other.iterdir()) == []
    assert not other.exists()
    assert (work / "half").exists()


HOLD = """
import sys
from pathlib import Path
from edgepack.cache import Cache
with Cache(Path(sys.argv[1])).checkpoint_folder("distill", "k") as work:
    print(work, flush=True)
    sys.stdin.read()
"""


def test_two_builds_do_not_meet(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        theirs = Path(holder.stdout.readline().strip())
        try:
            with cache.checkpoint_folder("distill", "k") as mine:
                assert mine != theirs
                (mine / "half").write_text("mine")
            assert not mine.exists()
            # Nor does `clean` take what a running build works in.
            assert cache.clean().in_use == 1
            assert theirs.exists()
        finally:
            holder.kill()
    # A build would resume it, until it is cleaned.
    cache.clean(older_than_days=1)
    assert theirs.exists()
    cache.clean()
    assert not theirs.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("a file")
    with pytest.raises(HostError) as caught, Cache(tmp_path).checkpoint_folder("distill", "k"):
        pass
    assert caught.value.code == "output-unwritable"


def test_what_the_stage_raises_is_its_own(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="of the stage"),
        Cache(tmp_path).checkpoint_folder("distill", "k"),
    ):
        raise OSError("of the stage")
