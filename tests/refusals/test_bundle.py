"""Hostile and broken bundles: each is refused in one line, before anything of it is used."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepack.device.packages import _top_level
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import check_all, content_digest, encode, parse, read_index
from edgepack.runtime.errors import BundleError
from support.bundle_cases import entry, run_bundle


def refuse(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught, Archive(str(path)) as archive:
        check_all(archive, read_index(archive))
    assert caught.value.why
    assert caught.value.hint
    return caught.value


def entries_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, entries: dict[str, bytes], **options: int) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(entry(name), data, options.get("compression"))


def rewritten_index(path: Path, change: Callable[[dict], None], *, seal: bool = True) -> None:
    entries = entries_of(path)
    document = json.loads(entries["bundle.json"])
    change(document)
    if seal:
        document["content_digest"] = content_digest(document)
    entries["bundle.json"] = encode(document)
    rewritten(path, entries)


def resealed(path: Path, name: str, data: bytes) -> None:
    """Put other bytes into one file, with an index that agrees with them."""
    entries = {**entries_of(path), name: data}
    document = json.loads(entries["bundle.json"])
    document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    document["content_digest"] = content_digest(document)
    entries["bundle.json"] = encode(document)
    rewritten(path, entries)


@pytest.fixture
def victim(linear_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "victim.edgepack"
    path.write_bytes(linear_bundle.read_bytes())
    return path


def test_the_bundle_itself_is_accepted(victim: Path) -> None:
    with Archive(str(victim)) as archive:
        assert check_all(archive, read_index(archive)) > 0


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"not a bundle at all, but longer than an end record"]
)
def test_not_a_bundle(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.edgepack"
    path.write_bytes(data)
    assert refuse(path).code == "bundle-malformed"


def test_missing(tmp_path: Path) -> None:
    assert refuse(tmp_path / "absent.edgepack").code == "bundle-unreadable"


def test_every_truncation_is_refused(victim: Path) -> None:
    whole = victim.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 97)):
        victim.write_bytes(whole[:size])
        assert refuse(victim).code == "bundle-malformed"


@pytest.mark.parametrize("where", ["front", "back"])
def test_bytes_around_the_archive(victim: Path, where: str) -> None:
    whole = victim.read_bytes()
    victim.write_bytes(b"#!/bin/sh\n" + whole if where == "front" else whole + b"\0")
    assert refuse(victim).code == "bundle-malformed"


def test_a_flipped_bit_in_each_file_is_found(victim: Path) -> None:
    whole = victim.read_bytes()
    with Archive(str(victim)) as archive:
        places = {e.name: e.start + e.size // 2 for e in archive.entries.values() if e.size}
    for name, place in places.items():
        victim.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert refuse(victim).code in ("bundle-altered", "bundle-index"), name


def test_a_flipped_bit_anywhere_is_found(victim: Path) -> None:
    """Times, permissions and blanks between the index's keys too: no byte may differ."""
    whole = victim.read_bytes()
    with Archive(str(victim)) as archive:
        index, directory = archive.entries["bundle.json"], victim.stat().st_size - 400
    places = {*range(0, 64), *range(directory, len(whole)), *range(64, len(whole), 1511)}
    places |= {*range(index.start, index.start + index.size, 23)}
    for place in sorted(places):
        victim.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refuse(victim)


def test_an_index_in_another_order_is_altered(victim: Path) -> None:
    whole = victim.read_bytes()
    before, after = b'"kind":"scores","name":"y"', b'"name":"y","kind":"scores"'
    assert whole.count(before) == 1
    victim.write_bytes(whole.replace(before, after))
    assert refuse(victim).code == "bundle-altered"


def test_compressed(victim: Path) -> None:
    rewritten(victim, entries_of(victim), compression=zipfile.ZIP_DEFLATED)
    assert refuse(victim).code == "bundle-malformed"


def test_comment(victim: Path) -> None:
    with zipfile.ZipFile(victim, "a") as archive:
        archive.comment = b"hello"
    assert refuse(victim).code == "bundle-malformed"


def test_duplicate_name(victim: Path) -> None:
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(victim, "a") as archive,
    ):
        archive.writestr(entry("model/model.onnx"), b"another")
    assert refuse(victim).code == "bundle-malformed"


def test_names_that_differ_in_case_alone(victim: Path) -> None:
    with zipfile.ZipFile(victim, "a") as archive:
        archive.writestr(entry("model/MODEL.onnx"), b"another")
    assert refuse(victim).code == "bundle-malformed"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a//b",
        "a/../b",
        "a\\b",
        "C:evil",
        "r\u00e9sum\u00e9",
        "a\nb",
        ".hid",
    ],
)
def test_unsafe_name(victim: Path, name: str) -> None:
    with zipfile.ZipFile(victim, "a") as archive:
        archive.writestr(entry(name), b"x")
    assert refuse(victim).code in ("bundle-unsafe-name", "bundle-malformed")


def test_extra_entry(victim: Path) -> None:
    with zipfile.ZipFile(victim, "a") as archive:
        archive.writestr(entry("numpy.py"), b"raise SystemExit('taken over')")
    assert refuse(victim).code == "bundle-altered"


def test_altered_requirements_are_not_printed(victim: Path) -> None:
    """What a device installs from comes out of the bundle as it was built, or not at all."""
    whole = victim.read_bytes()
    with Archive(str(victim)) as archive:
        place = archive.entries["requirements.txt"].start
    victim.write_bytes(whole[:place] + b"other" + whole[place + 5 :])
    done = run_bundle(victim, "info", "--requirements")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[bundle-altered]" in done.stderr


def test_missing_entry(victim: Path) -> None:
    entries = entries_of(victim)
    del entries["requirements.txt"]
    rewritten(victim, entries)
    assert refuse(victim).code == "bundle-altered"


def test_overlapping_entries(victim: Path) -> None:
    """Two directory entries over the same bytes, as a zip bomb has them."""
    with zipfile.ZipFile(victim) as archive:
        first = archive.infolist()[0]
    data = bytearray(victim.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<I", data, second + 42, first.header_offset)
    victim.write_bytes(data)
    assert refuse(victim).code == "bundle-malformed"


def test_local_header_with_another_name(victim: Path) -> None:
    with Archive(str(victim)) as archive:
        at = archive.entries["model/model.onnx"].start - len("model/model.onnx")
    data = victim.read_bytes()
    victim.write_bytes(data[:at] + b"model/model.onny" + data[at + 16 :])
    assert refuse(victim).code == "bundle-malformed"


def index_bytes(path: Path) -> bytes:
    return entries_of(path)["bundle.json"]


def test_index_of_another_format(victim: Path) -> None:
    rewritten_index(victim, lambda d: d.update(format="edgepack/4"))
    assert refuse(victim).code == "bundle-format"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("model"),
        lambda d: d.update(model="model/other.onnx"),
        lambda d: d.update(inputs=[{"name": "x"}]),
        lambda d: d["inputs"][0].update(dtype="object"),
        lambda d: d["inputs"][0].update(shape=["batch", -1]),
        lambda d: d["inputs"][0].update(shape=["batch", True]),
        lambda d: d["gates"]["quality"].update(snr_db="low"),
        lambda d: d["files"]["model/model.onnx"].update(sha256="00"),
        lambda d: d["reference"].update(inputs=[]),
        lambda d: d["reference"].update(built=["reference/built-0.npy"] * 2),
        lambda d: d.update(outputs={}),
    ],
)
def test_index_with_a_wrong_key(victim: Path, change: Callable[[dict], None]) -> None:
    rewritten_index(victim, change)
    assert refuse(victim).code == "bundle-index"


def test_index_whose_digest_is_not_its_own(victim: Path) -> None:
    rewritten_index(victim, lambda d: d.update(name="another"), seal=False)
    assert refuse(victim).code == "bundle-index"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000, "nested"),
        (b'{"format": "edgepack/2", "format": "edgepack/2"}', "repeated"),
        (b'{"format": NaN}', "NaN"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "missing"),
        (b" " * (5 << 20), "the limit is"),
    ],
)
def test_index_that_is_not_one(data: bytes, why: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(data)
    assert caught.value.code == "bundle-index"
    assert why in caught.value.why


def test_reference_with_a_pickle_in_it_is_not_unpickled(victim: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    name = "reference/original-0.npy"
    resealed(victim, name, buffer.getvalue())
    done = run_bundle(victim, "verify", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "bundle-reference"
    assert not marker.exists()


def test_the_refusal_is_one_error_and_exit_2(victim: Path) -> None:
    with Archive(str(victim)) as archive:
        entry = archive.entries["model/model.onnx"]
    data = bytearray(victim.read_bytes())
    data[entry.start + 5] ^= 255
    victim.write_bytes(data)
    done = run_bundle(victim, "verify")
    assert done.returncode == 2
    assert done.stderr.startswith("error[bundle-altered]: ")
    assert "Traceback" not in done.stderr


def test_another_architecture_is_refused_before_the_model_is_used(victim: Path) -> None:
    rewritten_index(victim, lambda d: d["device"].update(arch="sparc"))
    done = run_bundle(victim, "verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "device-arch")


def test_a_missing_instruction_set_is_named(victim: Path) -> None:
    rewritten_index(victim, lambda d: d["device"].update(isa=["avx2", "avx9000"]))
    done = run_bundle(victim, "verify")
    assert done.returncode == 2
    assert "error[device-isa]" in done.stderr
    assert "avx9000" in done.stderr


def test_an_older_engine_is_named(victim: Path) -> None:
    rewritten_index(victim, lambda d: d["variants"][0]["needs"].update(engine_version="99.0"))
    done = run_bundle(victim, "verify")
    assert done.returncode == 2
    assert "error[engine-version]" in done.stderr


def test_no_engine_at_all(victim: Path, tmp_path: Path) -> None:
    """numpy alone on the device: the loader says what to install."""
    site = tmp_path / "site"
    site.mkdir()
    for path in _top_level("numpy"):
        (site / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-S", str(victim), "verify"],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error[engine-missing]" in done.stderr


@pytest.mark.parametrize("kind", ["built", "original"])
def test_answers_that_its_build_did_not_measure_are_refused(victim: Path, kind: str) -> None:
    name = f"reference/{kind}-0.npy"
    answers = np.load(io.BytesIO(entries_of(victim)[name])) * 1.5
    buffer = io.BytesIO()
    np.save(buffer, answers.astype(np.float32))
    resealed(victim, name, buffer.getvalue())
    done = run_bundle(victim, "verify", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "bundle-answers"


@pytest.mark.parametrize(
    "bounds",
    [
        {"snr_db": -1e308},
        {"snr_db": True},
        {"agreement": -5},
        {"agreement": 2},
        {"mse": 0},
        {"bit_exact": 1},
    ],
)
@pytest.mark.parametrize("question", ["quality", "fidelity"])
def test_gates_that_mean_nothing_are_refused(victim: Path, bounds: dict, question: str) -> None:
    rewritten_index(victim, lambda d: d["gates"].update({question: bounds}))
    assert refuse(victim).code == "bundle-index"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda d: d["parts"].clear(), "parts"),
        (lambda d: d["parts"]["y"][0].update(variance=-1), "variance"),
        (lambda d: d["parts"]["y"][0].update(axis=1, ranges=[[0, 9]]), "range"),
        (lambda d: d["parts"]["y"][0].update(axis=0, ranges=[[0, 1]]), "axis"),
        (lambda d: d["parts"]["y"][0].update(axis=1, ranges=[["0", 1]]), "ranges"),
        (lambda d: d["parts"]["y"][0].update(axis=1, ranges=[[0, 1], "1:2"]), "ranges"),
        (lambda d: d["quality"]["outputs"].clear(), "quality.outputs"),
        (lambda d: d["quality"]["reference"]["y"].update(parts=[]), "quality.reference"),
        (lambda d: d["quality"]["outputs"]["y"]["parts"][0].update(worst_error="0"), "worst_error"),
        (lambda d: d.update(sizes=[{"axis": "z", "size": 2, "original": [], "built": []}]), "z"),
        (lambda d: d.update(sizes=[{"axis": "batch", "size": 0, "original": []}]), "size"),
    ],
)
def test_measurements_that_do_not_fit_the_outputs_are_refused(
    victim: Path, change: Callable[[dict], None], key: str
) -> None:
    rewritten_index(victim, change)
    error = refuse(victim)
    assert error.code == "bundle-index"
    assert key in error.why


def test_a_bundle_without_measured_quality_does_not_pass(victim: Path) -> None:
    """As the draft of a build has none."""
    rewritten_index(victim, lambda d: d.update(quality={}))
    done = run_bundle(victim, "verify", "--json")
    gates = json.loads(done.stdout)["quality"]["gates"]
    assert (done.returncode, gates[-1]["name"], gates[-1]["passed"]) == (1, "built", False)
