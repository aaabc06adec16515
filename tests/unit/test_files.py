"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edgepack import files
from edgepack.errors import HostError
from edgepack.runtime import temporary
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


MAKE = """
import sys
from pathlib import Path
from edgepack import files
with files.temporary_beside(Path(sys.argv[1])) as file, files.temporary_folder() as folder:
    print(file, folder, sep="\\n", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of its own, for this process and its children."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_a_killed_process_left_goes_and_what_a_running_one_uses_stays(
    tmp_path: Path, scratch: Path
) -> None:
    """The file beside the output, whatever the next output is called, and the folder in TMPDIR."""
    command = [sys.executable, "-c", MAKE, str(tmp_path / "x.edgepack")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        left = [Path(running.stdout.readline().strip()) for _ in range(2)]
        (left[1] / "below").mkdir()
        assert left[1].parent == scratch
        _next_run(tmp_path / "other.edgepack")
        assert all(path.exists() for path in left)
        running.kill()
        running.wait()
    assert all(path.exists() for path in left)
    _next_run(tmp_path / "other.edgepack")
    assert not any(path.exists() for path in left)


def _next_run(output: Path) -> None:
    with files.temporary_beside(output), files.temporary_folder():
        pass


def test_a_child_that_outlives_its_parent_keeps_the_folder(scratch: Path) -> None:
    folder = files.LockedFolder.create()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(folder.lock.descriptor,),
    ) as child:
        folder.lock.close()
        temporary.sweep(str(scratch))
        assert folder.path.exists()
        child.kill()
    temporary.sweep(str(scratch))
    assert not folder.path.exists()


@pytest.mark.parametrize(
    "name", ["edgepack-abcd1234", ".edgepack-abc", ".edgepack-ABCD1234", ".edgepack-abcd1234.bak"]
)
def test_what_has_another_name_is_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.tmpx").touch()
    temporary.sweep(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_or_a_pipe_of_that_name_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "valuable").mkdir()
    (tmp_path / ".edgepack-aaaaaaaa").symlink_to(tmp_path / "valuable")
    os.mkfifo(tmp_path / ".edgepack-bbbbbbbb.tmp")
    temporary.sweep(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_what_another_user_owns_stays(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: no file can be given to another user")
    path, descriptor = temporary.create_file(str(tmp_path))
    os.close(descriptor)
    os.chown(path, 12345, 12345)
    temporary.sweep(str(tmp_path))
    assert Path(path).exists()


def test_an_error_names_the_output_and_not_its_temporary_file(tmp_path: Path) -> None:
    with files.temporary_beside(tmp_path / "x.edgepack") as work:
        error = files.unwritable(work, OSError(5, "Input/output error"))
    assert error.what == f"{tmp_path / 'x.edgepack'} cannot be written"


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


@pytest.mark.parametrize(("there", "left"), [(["mark", "old"], "old"), (["old"], "new")])
def test_whose_folder_stays(tmp_path: Path, there: list[str], left: str) -> None:
    """Another process's whole one; never half a one."""
    place = tmp_path / "folder"
    with files.new_folder(place, "mark") as work:
        for name in ("mark", "new"):
            (work / name).touch()
        place.mkdir()
        for name in there:
            (place / name).touch()
    assert sorted(path.name for path in place.iterdir()) == ["mark", left]
    assert list(tmp_path.iterdir()) == [place]


def test_a_replacement_gives_way_to_what_is_in_use(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    for name in ("first", "second", "third"):
        with files.replacing_folder(place) as folder:
            (folder.path / name).touch()
        if name == "second":
            second = folder
            assert folder.path != place
            assert [path.name for path in folder.path.iterdir()] == ["second"]
        else:
            assert folder.path == place
        if name == "first":
            lock = folder.lock
        else:
            lock.close()
    assert [path.name for path in place.iterdir()] == ["third"]
    second.lock.close()
    assert list(tmp_path.iterdir()) == [place]


def test_folders_that_killed_processes_left_go(tmp_path: Path) -> None:
    running, descriptor = temporary.create_folder(str(tmp_path))
    killed, unlocked = temporary.create_folder(str(tmp_path))
    os.close(unlocked)
    (Path(killed) / "below").mkdir()
    (tmp_path / "other").mkdir()
    with files.new_folder(tmp_path / "folder", "mark"):
        pass
    os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {Path(running).name, "folder", "other"}


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
