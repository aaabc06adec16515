"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from edgepack import files
from edgepack.errors import HostError
from edgepack.runtime.commands.run import write_npz


def test_what_was_there_stays_until_the_rename(tmp_path: Path) -> None:
    place = tmp_path / "x.edgepack"
    place.write_bytes(b"old")
    with files.temporary_beside(place) as temporary:
        temporary.write_bytes(b"new")
        assert place.read_bytes() == b"old"
        files.publish(temporary, place)
    assert place.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [place]


def test_nothing_is_left_of_what_was_not_published(tmp_path: Path) -> None:
    with files.temporary_beside(tmp_path / "x.edgepack") as temporary:
        temporary.write_bytes(b"half")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_builds_go_once_no_build_can_own_them(tmp_path: Path) -> None:
    old, fresh, other = (
        tmp_path / name for name in (".x.edgepack.1.tmp", ".x.edgepack.2.tmp", ".y.edgepack.1.tmp")
    )
    for path in (old, fresh, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.ABANDONED,) * 2)
    with files.temporary_beside(tmp_path / "x.edgepack"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([fresh, other])


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError) as caught,
        files.temporary_beside(tmp_path / "absent" / "x.edgepack"),
    ):
        pass
    assert caught.value.code == "output-unwritable"


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    place = tmp_path / "parent" / "folder"
    with files.new_folder(place, "mark") as work:
        (work / "mark").touch()
        assert not place.exists()
    assert [path.name for path in place.iterdir()] == ["mark"]
    assert list(place.parent.iterdir()) == [place]


def test_a_folder_whose_block_failed_is_not_there(tmp_path: Path) -> None:
    def fail(work: Path) -> None:
        (work / "mark").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "folder", "mark") as work:
        fail(work)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("there", "replace", "left"),
    [(["mark", "old"], False, "old"), (["mark", "old"], True, "new"), (["old"], False, "new")],
)
def test_whose_folder_stays(tmp_path: Path, there: list[str], replace: bool, left: str) -> None:
    """Another process's whole one, unless it is to be replaced; never half a one."""
    place = tmp_path / "folder"
    with files.new_folder(place, "mark", replace=replace) as work:
        for name in ("mark", "new"):
            (work / name).touch()
        place.mkdir()
        for name in there:
            (place / name).touch()
    assert sorted(path.name for path in place.iterdir()) == ["mark", left]
    assert list(tmp_path.iterdir()) == [place]


def test_folders_that_killed_processes_left_go(tmp_path: Path) -> None:
    for name in (".new-old", ".new-young", "other"):
        (tmp_path / name / "below").mkdir(parents=True)
    for name in (".new-old", "other"):
        os.utime(tmp_path / name, (0, 0))
    with files.new_folder(tmp_path / "folder", "mark"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-young", "folder", "other"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError) as caught, files.new_folder(tmp_path / "file" / "x", "mark"):
        pass
    assert caught.value.code == "output-unwritable"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o000, 0o644)])
def test_a_new_file_is_no_more_open_than_the_umask_allows(
    mask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        files.write(tmp_path / "page.html", b"page")
        write_npz(str(tmp_path / "out.npz"), {"y": np.zeros(3)})
    finally:
        assert os.umask(before) == mask
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
