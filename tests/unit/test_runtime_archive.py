"""The bundle as a file: everything in it is found, and is what was put there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from edgepack import bundle
from edgepack.bundle import loader
from edgepack.runtime.bundle import archive as archives
from edgepack.runtime.bundle.archive import INDEX, Archive, own_bundle
from edgepack.runtime.bundle.arrays import read_arrays
from edgepack.runtime.bundle.index import Description, check_all, check_file, read_index
from edgepack.runtime.commands.verify import reference_feeds
from edgepack.runtime.errors import BundleError
from support.linear import linear_contents, linear_onnx


def test_every_entry_is_what_zipfile_reads(linear_bundle: Path) -> None:
    with zipfile.ZipFile(linear_bundle) as held, Archive(str(linear_bundle)) as archive:
        assert list(archive.entries) == held.namelist()
        for name in held.namelist():
            data = held.read(name)
            assert archive.read(name) == data
            assert b"".join(archive.chunks(name)) == data
            found = (hashlib.sha256(data).hexdigest(), held.getinfo(name).CRC)
            assert archive.hashes(name) == found
            assert archive.entries[name].size == len(data)


def test_pieces_make_the_whole(linear_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "CHUNK", 7)
    with Archive(str(linear_bundle)) as archive:
        pieces = list(archive.chunks(INDEX))
        assert {len(piece) for piece in pieces[:-1]} == {7}
        assert b"".join(pieces) == archive.read(INDEX)


def test_the_first_entries_are_what_python_and_the_loader_look_for(linear_bundle: Path) -> None:
    with Archive(str(linear_bundle)) as archive:
        assert list(archive.entries)[:2] == ["__main__.py", INDEX]


def test_the_index_lists_all_the_rest(linear_bundle: Path) -> None:
    with Archive(str(linear_bundle)) as archive:
        index = read_index(archive)
        assert set(index.files) == set(archive.entries) - {INDEX}
        assert check_all(archive, index) == sum(size for _, size in index.files.values())
        model, _ = linear_onnx()
        assert check_file(archive, index, index.model) == model.SerializeToString(
            deterministic=True
        )


def test_a_reader_finds_the_description_that_was_written(tmp_path: Path) -> None:
    """Every fact that `Contents` and `Index` share comes back as it was."""
    contents = linear_contents()
    written = replace(
        contents,
        inputs=tuple(contents.inputs),
        outputs=tuple(contents.outputs),
        variants=tuple(contents.variants),
        parts={name: tuple(parts) for name, parts in contents.parts.items()},
        build={"arch": "x86_64"},
    )
    bundle.write(tmp_path / "x.edgepack", written)
    with Archive(str(tmp_path / "x.edgepack")) as archive:
        index = read_index(archive)
    for field in fields(Description):
        assert getattr(index, field.name) == getattr(written, field.name), field.name


def test_the_loader_is_in_it_whole(linear_bundle: Path) -> None:
    """Whole means: every part that a bundle for CPUs needs."""
    with Archive(str(linear_bundle)) as archive:
        carried = {name for name in archive.entries if name.startswith("runtime/")}
        files = loader.read_files(frozenset({loader.Need.TUNE}))
        assert carried == {name for name in files if name.startswith("runtime/")}
        for name, data in files.items():
            assert archive.read(name) == data


def test_the_reference_samples(linear_bundle: Path) -> None:
    contents = linear_contents()
    with Archive(str(linear_bundle)) as archive:
        index = read_index(archive)
        (original,) = read_arrays(archive, index, index.reference.original, index.reference.samples)
        np.testing.assert_array_equal(original, contents.original[0])
        calls = [call["x"] for call in reference_feeds(archive, index)]
        np.testing.assert_array_equal(np.stack(calls), contents.reference[0])


def test_reference_samples_that_are_too_few(tmp_path: Path) -> None:
    contents = linear_contents()
    path = tmp_path / "few.edgepack"
    object.__setattr__(contents, "original", [contents.original[0][:3]])
    bundle.write(path, contents)
    with Archive(str(path)) as archive:
        index = read_index(archive)
        with pytest.raises(BundleError) as caught:
            read_arrays(archive, index, index.reference.original, index.reference.samples)
    assert caught.value.code == "bundle-reference"
    assert "(3, 1, 3) for 5 samples" in caught.value.why


def test_an_entry_that_is_not_there(linear_bundle: Path) -> None:
    with Archive(str(linear_bundle)) as archive, pytest.raises(BundleError) as caught:
        archive.read("absent")
    assert caught.value.code == "bundle-malformed"


def test_a_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Archive(str(tmp_path))
    assert caught.value.code == "bundle-unreadable"


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        bundle.write(tmp_path / name, linear_contents())
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_outside_a_bundle_the_loader_has_none_of_its_own() -> None:
    with pytest.raises(BundleError) as caught:
        own_bundle()
    assert caught.value.code == "bundle-not-named"


def test_python_s_own_zip_import_runs_it(linear_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import runtime.bundle.archive as a; print(a.own_bundle())"],
        env={"PYTHONPATH": str(linear_bundle)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(linear_bundle), done.stderr
