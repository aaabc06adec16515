"""Hostile and broken wheels in a bundle: each is one error, and nothing of it is written."""

from __future__ import annotations

import base64
import io
import os
import random
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepack.errors import BundleError, DeviceError, EdgepackError, EngineError
from edgepack.runtime.commands.setup import setup
from edgepack.runtime.wheels.wheel import Wheel
from support.wheel_cases import bundle_with, entries_of, make_wheel, record_of, write_zip

NAME = "evil-1.0-py3-none-any.whl"
INFO = "evil-1.0.dist-info"
GOOD = entries_of("evil", "1.0", {"evil.py": b"x = 1\n"})

Entries = dict[str, bytes]


def refuse(folder: Path, *wheels: Path, code: str = "wheel-malformed") -> EdgepackError:
    """`setup` refuses the bundle, and leaves the folder as it was."""
    place = folder / "place"
    place.mkdir(exist_ok=True)
    bundle = bundle_with(folder / "x.edgepack", *wheels)
    before = sorted(folder.rglob("*"))
    with pytest.raises((BundleError, DeviceError)) as caught:
        setup(str(bundle), str(place / "env"))
    assert caught.value.code == code
    assert caught.value.why
    assert caught.value.hint
    assert sorted(folder.rglob("*")) == before
    return caught.value


def listed(entries: Entries) -> Entries:
    """With a RECORD that lists them all."""
    rest = {name: data for name, data in entries.items() if name != f"{INFO}/RECORD"}
    return {**rest, f"{INFO}/RECORD": record_of(rest, INFO).encode()}


def test_the_good_one_is_taken(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "x.edgepack", write_zip(tmp_path / NAME, GOOD))
    assert setup(str(bundle), str(tmp_path / "env"))["packages"] == {"evil": "1.0"}


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "/evil.py", "a/../../evil.py", "a//evil.py", "./evil.py", "a/./evil.py",
     "..", "a\\..\\evil.py", "C:evil.py", "a\nb.py", "a\x7fb.py", "../", "/",
     "evil-1.0.data/purelib/../../evil.py"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    entries = listed({**GOOD, name: b"import os"})
    assert "has the name" in refuse(tmp_path, write_zip(tmp_path / NAME, entries)).why


def test_a_name_that_ends_before_its_end(tmp_path: Path) -> None:
    """zipfile shows a name up to its NUL."""
    path = write_zip(tmp_path / NAME, listed({**GOOD, "evil.py#/../../x": b"y"}))
    path.write_bytes(path.read_bytes().replace(b"evil.py#", b"evil.py\0"))
    assert "has the name" in refuse(tmp_path, path).why


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFSOCK]
)
def test_what_is_no_file(tmp_path: Path, kind: int) -> None:
    entries = listed({**GOOD, "link": b"/etc/passwd"})
    path = write_zip(tmp_path / NAME, entries, link=kind | 0o777)
    assert "is a link or a device" in refuse(tmp_path, path).why


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    entries = listed({**GOOD, "dir/": b""})
    path = write_zip(tmp_path / NAME, entries, **{"dir/": stat.S_IFLNK | 0o777})
    assert "is a link or a device" in refuse(tmp_path, path).why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda e: e.update({"extra.py": b"x"}), "does not list 'extra.py'"),
        (lambda e: e.pop("evil.py"), "does not match RECORD"),
        (lambda e: e.update({"evil.py": b"x = 2\n"}), "the hash of 'evil.py' does not match"),
        (lambda e: e.update({"evil.py": b"x = 22\n"}), "does not match RECORD"),
        (lambda e: e.pop(f"{INFO}/RECORD"), "0 RECORD files"),
        (lambda e: e.update({"b-1.dist-info/RECORD": b""}), "2 RECORD files"),
        (lambda e: e.pop(f"{INFO}/WHEEL"), "no file WHEEL"),
        (lambda e: e.update({f"{INFO}/WHEEL": b"Wheel-Version: 2.0\n"}), "format"),
        (lambda e: e.update({f"{INFO}/WHEEL": b""}), "format"),
        (lambda e: e.update({f"{INFO}/WHEEL": b"\xff\xfe"}), "UnicodeDecodeError"),
        (lambda e: e.update({f"{INFO}/RECORD": b"\xff"}), "UnicodeDecodeError"),
        (lambda e: e.update({f"{INFO}/RECORD": b""}), "does not list"),
        (lambda e: e.update({f"{INFO}/RECORD": b"evil.py\n"}), "the line 'evil.py'"),
        (lambda e: e.update({f"{INFO}/RECORD": b"evil.py,,\n"}), "no hash of 'evil.py'"),
        (lambda e: e.update({f"{INFO}/RECORD": b"evil.py,md5=abc,6\n"}), "no hash of 'evil.py'"),
        (lambda e: e.update({f"{INFO}/RECORD": b"evil.py,sha256=a,6\n"}), "base64"),
        (lambda e: e.update({f"{INFO}/RECORD": b"evil.py,sha256=\xc3\xa9,6\n"}), "ASCII"),
        (lambda e: e.update({f"{INFO}/RECORD": b"evil.py,sha256=abcd,six\n"}), "invalid literal"),
        (lambda e: e.update({f"{INFO}/RECORD": b'"evil.py,sha256=abcd,6\n'}), "unexpected end"),
        (lambda e: e.update({f"{INFO}/RECORD": 2 * e[f"{INFO}/RECORD"]}), "the line 'evil.py,"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_hold(
    tmp_path: Path, change: Callable[[Entries], object], why: str
) -> None:
    entries = dict(GOOD)
    change(entries)
    assert why in refuse(tmp_path, write_zip(tmp_path / NAME, entries)).why


def test_a_signature_need_not_be_hashed(tmp_path: Path) -> None:
    entries = {**GOOD, f"{INFO}/RECORD.jws": b"{}"}
    entries[f"{INFO}/RECORD"] += f"{INFO}/RECORD.jws,,\n".encode()
    bundle = bundle_with(tmp_path / "x.edgepack", write_zip(tmp_path / NAME, entries))
    assert setup(str(bundle), str(tmp_path / "env"))["made"]


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    path = write_zip(tmp_path / NAME, GOOD)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("evil.py"), b"x = 2\n")
    assert "'evil.py' is repeated" in refuse(tmp_path, path).why


def test_a_file_that_another_place_brings_once_more(tmp_path: Path) -> None:
    entries = listed({**GOOD, "evil-1.0.data/purelib/evil.py": b"x = 2\n"})
    assert "'evil.py' is repeated" in refuse(tmp_path, write_zip(tmp_path / NAME, entries)).why


def test_a_file_below_a_file(tmp_path: Path) -> None:
    entries = listed({**GOOD, "evil.py/below.py": b""})
    refuse(tmp_path, write_zip(tmp_path / NAME, entries), code="wheels-clash")


def test_two_wheels_with_different_files_of_one_name(tmp_path: Path) -> None:
    wheels = [
        make_wheel(tmp_path, name, files={"shared/__init__.py": b"", "shared/x.py": name.encode()})
        for name in ("one", "other")
    ]
    error = refuse(tmp_path, *wheels, code="wheels-clash")
    assert error.why.startswith("shared/x.py: in one-")


def test_what_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / NAME
    for data in (b"", b"PK\3\4", b"no zip" * 100, b"PK\5\6" + bytes(18)):
        path.write_bytes(data)
        refuse(tmp_path, path)


def test_every_truncation(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / NAME, GOOD).read_bytes()
    for size in range(0, len(whole), 7):
        with pytest.raises(BundleError):
            read_all(whole[:size])


def read_all(data: bytes) -> dict[str, bytes]:
    """Every file of a wheel, as `setup` reads them."""
    with Wheel(NAME, io.BytesIO(data)) as wheel:
        return {place: b"".join(wheel.chunks(place)) for place in wheel.files}


def test_a_damaged_wheel_is_one_error_or_the_same_files() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in GOOD.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    whole, wanted, drawn = buffer.getvalue(), read_all(buffer.getvalue()), random.Random(1)
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= drawn.randrange(1, 256)
        try:
            found = read_all(bytes(damaged))
        except BundleError:
            refused += 1
        else:
            assert {name: data for name, data in found.items() if not name.endswith("RECORD")} == {
                name: data for name, data in wanted.items() if not name.endswith("RECORD")
            }
    assert refused > len(whole) / 2


def test_an_encrypted_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / NAME, GOOD)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refuse(tmp_path, path).why


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression(tmp_path: Path, method: int) -> None:
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in GOOD.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    assert "compressed in an unusual way" in refuse(tmp_path, path).why


def test_a_bomb(tmp_path: Path) -> None:
    entries = listed({**GOOD, "zeros.bin": bytes(30 << 20)})
    error = refuse(tmp_path, write_zip(tmp_path / NAME, entries))
    assert "more than 100 times its size" in error.why


def test_a_file_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(4096)
    path = write_zip(tmp_path / NAME, listed({**GOOD, "big.bin": noise * 64}))
    small = base64.b64encode(noise)[:100]
    smaller = write_zip(tmp_path / "small", listed({**GOOD, "big.bin": small}))
    record = zipfile.ZipFile(smaller).read(f"{INFO}/RECORD")
    # The headers and RECORD say 100 bytes; the stream has 262,144.
    with zipfile.ZipFile(path) as archive:
        packed = {i.filename: archive.read(i) for i in archive.infolist()}
    packed[f"{INFO}/RECORD"] = record
    write_zip(path, packed)
    data = path.read_bytes().replace((4096 * 64).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(data)
    assert "Bad CRC" in refuse(tmp_path, path).why


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("cp27-cp27m-manylinux1_x86_64", "wheels-python"),
        ("cp3999-cp3999-any", "wheels-python"),
        ("pp39-pypy39_pp73-any", "wheels-python"),
        ("py3-none-win_amd64", "wheels-platform"),
        ("py3-none-musllinux_1_2_x86_64", "wheels-platform"),
        ("py3-none-manylinux_2_17_s390x", "wheels-platform"),
        ("py3-none-manylinux_2_999_x86_64.manylinux_2_999_aarch64", "wheels-platform"),
    ],
)
def test_a_wheel_for_another_python_or_platform(tmp_path: Path, tag: str, code: str) -> None:
    error = refuse(tmp_path, make_wheel(tmp_path, "evil", tag=tag), code=code)
    assert error.why.startswith("they are for ")
    assert "evil 1.0 does not run here" in error.why


def test_a_name_that_is_no_wheel_s(tmp_path: Path) -> None:
    refuse(tmp_path, write_zip(tmp_path / "evil.whl", GOOD))


def test_a_bundle_without_wheels(linear_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        setup(str(linear_bundle), str(tmp_path / "env"))
    assert caught.value.code == "bundle-without-wheels"
    assert "--wheels" in caught.value.hint


def test_an_altered_wheel(tmp_path: Path) -> None:
    """The index vouches for the wheels before any is opened."""
    wheel = make_wheel(tmp_path, "good")
    bundle = bundle_with(tmp_path / "x.edgepack", wheel)
    whole = bundle.read_bytes()
    place = whole.index(wheel.read_bytes()) + 40
    bundle.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(BundleError) as caught:
        setup(str(bundle), str(tmp_path / "env"))
    assert caught.value.code == "bundle-altered"
    assert not (tmp_path / "env").exists()


def test_more_wheels_than_a_bundle_holds(tmp_path: Path) -> None:
    large = tmp_path / "large-1.0-py3-none-any.whl"
    with large.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(EngineError) as caught:
        bundle_with(tmp_path / "x.edgepack", large)
    assert caught.value.code == "bundle-too-large"
    assert caught.value.hint == "remove --wheels"
    assert not (tmp_path / "x.edgepack").exists()


# Places.


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "b").mkdir()
    return str(bundle_with(tmp_path / "b" / "x.edgepack", make_wheel(tmp_path / "b", "good")))


def blocked(bundle: str, place: Path | str, code: str) -> None:
    with pytest.raises(DeviceError) as caught:
        setup(bundle, str(place))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "mark", [None, "{", "[]", "{}", '{"wheels": {}}', "[" * 100_000, "\0", '{"a": NaN}']
)
def test_a_folder_that_is_not_ours_stays(bundle: str, tmp_path: Path, mark: str | None) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    if mark is not None:
        (place / "edgepack.json").write_text(mark)
    blocked(bundle, place, "setup-occupied")
    assert (place / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    blocked(bundle, tmp_path / "file", "setup-occupied")
    blocked(bundle, tmp_path / "file" / "env", "setup-unwritable")
    assert (tmp_path / "file").read_text() == "mine"


def test_places_that_cannot_be_written(bundle: str, tmp_path: Path) -> None:
    blocked(bundle, "/proc/env", "setup-unwritable")
    blocked(bundle, tmp_path / ("x" * 300), "setup-unwritable")
    blocked(bundle, "/", "setup-occupied")


def test_a_link_that_leads_nowhere(bundle: str, tmp_path: Path) -> None:
    """It is followed, as by `venv`: the environment stands where it points to."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert setup(bundle, str(tmp_path / "link"))["environment"] == str(tmp_path / "target")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    blocked(bundle, tmp_path / "loop", "setup-unwritable")


@pytest.mark.parametrize("name", [".env.new", ".env.old"])
def test_a_planted_link_is_not_followed(bundle: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "treasure").mkdir()
    (tmp_path / "treasure" / "gold").write_text("gold")
    (tmp_path / name).symlink_to(tmp_path / "treasure")
    with pytest.raises(DeviceError):
        setup(bundle, str(tmp_path / "env"))
    assert (tmp_path / "treasure" / "gold").read_text() == "gold"
    assert not (tmp_path / "env").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_user_s_folder_is_not_taken_for_a_leftover(bundle: str, tmp_path: Path) -> None:
    (tmp_path / ".env.new").mkdir()
    (tmp_path / ".env.new" / "gold").write_text("gold")
    os.chown(tmp_path / ".env.new", 12345, 12345)
    blocked(bundle, tmp_path / "env", "setup-occupied")
    assert (tmp_path / ".env.new" / "gold").read_text() == "gold"


def test_the_command_line(bundle: str, linear_bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", *arguments], capture_output=True, text=True, cwd=tmp_path
        )

    assert run(bundle, "setup").returncode == 2
    done = run(str(linear_bundle), "setup", "env", "--json")
    assert done.returncode == 2
    assert '"code": "bundle-without-wheels"' in done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "env").exists()
