"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgepack import files
from edgepack.errors import HostError


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
