"""A bundle that takes photographs: verified from the JPEG to the answer, and used on files."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from edgepack.device import Local, verify_bundle
from edgepack.report import render_html, render_terminal, validate
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.info import describe_preprocessing
from edgepack.runtime.commands.verify import reference_feeds
from edgepack.runtime.errors import EdgepackError
from edgepack.runtime.model import load
from support.bundle_cases import reseal, rewrite_index, run_bundle
from support.picture_cases import NAMES, encode, photographs


def verify(path: Path) -> tuple[int, Any]:
    done = run_bundle(path, "verify", "--json")
    return done.returncode, json.loads(done.stdout)


def altered(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "altered.edgepack"
    rewrite_index(source, path, change)
    return path


def names_of_missed(verdict: Any, question: str) -> list[tuple[str, str]]:
    gates = verdict[question]["gates"]
    return [(gate["name"], gate["output"]) for gate in gates if not gate["passed"]]


def test_it_ships_small_raw_references(photo_bundle: Path) -> None:
    with zipfile.ZipFile(photo_bundle) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    index = json.loads(zipfile.ZipFile(photo_bundle).read("bundle.json"))
    assert index["format"] == "edgepack/3"
    assert index["reference"]["inputs"] == []
    assert len(index["reference"]["raw"]["files"]) == index["reference"]["samples"] == 8
    assert not [name for name in sizes if name.startswith("reference/input")]
    # Beside the model: the loader, the report, references and answers.
    assert sum(sizes.values()) - sizes["model/model.onnx"] < 500_000
    assert "pillow" in zipfile.ZipFile(photo_bundle).read("requirements.txt").decode()


def test_the_device_makes_the_build_s_arrays(photo_bundle: Path) -> None:
    status, verdict = verify(photo_bundle)
    assert status == 0
    question = verdict["preprocessing"]
    assert question["passed"]
    assert [gate["name"] for gate in question["gates"]] == ["bit_exact"]
    assert question["samples"] == 8


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "bgr"},
        {"mean": [0.0, 0.0, 0.0]},
        {"interpolation": "bicubic"},
        {"interpolation": "nearest"},
        {"resize": 35},
        {"resize": [36, 36]},
        {"scale": 1.0},
    ],
    ids=lambda change: "-".join(f"{key}={value}" for key, value in change.items()),
)
def test_another_preprocessing_fails_by_that_name(
    photo_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = altered(photo_bundle, tmp_path, lambda index: index["preprocessing"].update(change))
    done = run_bundle(path, "verify")
    assert done.returncode == 1
    assert "FAIL preprocessing of image: different bits" in done.stdout
    assert done.stdout.endswith("verdict: FAIL\n")


def other_decoder(index: dict[str, Any]) -> None:
    """Let the build have had another JPEG decoder, whose arrays differ in a bit."""
    raw = index["reference"]["raw"]
    raw["versions"]["libjpeg"] = "9f"
    raw["sha256"][0][0] = "0" * 64


def test_another_decoder_is_held_to_a_bound(photo_bundle: Path, tmp_path: Path) -> None:
    status, verdict = verify(altered(photo_bundle, tmp_path, other_decoder))
    assert status == 0
    (gate,) = verdict["preprocessing"]["gates"]
    assert (gate["name"], gate["bound"], gate["passed"]) == ("input_db", 37.0, True)
    assert "libjpeg" in gate["note"]
    # The answers to inputs that differ cannot have the same bits; those to the others have.
    names = [gate["name"] for gate in verdict["fidelity"]["gates"]]
    assert names == ["bit_exact", "snr_db", "snr_db"]

    def change(index: dict[str, Any]) -> None:
        other_decoder(index)
        index["preprocessing"]["interpolation"] = "bicubic"

    status, verdict = verify(altered(photo_bundle, tmp_path, change))
    assert status == 1
    assert names_of_missed(verdict, "preprocessing") == [("input_db", "preprocessing of image")]


def test_a_damaged_record_of_raw_samples_is_refused(photo_bundle: Path, tmp_path: Path) -> None:
    def drop_hash(index: dict[str, Any]) -> None:
        index["reference"]["raw"]["sha256"][0].pop()

    def drop_preprocessing(index: dict[str, Any]) -> None:
        del index["preprocessing"]

    def unknown_key(index: dict[str, Any]) -> None:
        index["preprocessing"]["sharpen"] = 2

    def huge(index: dict[str, Any]) -> None:
        index["preprocessing"]["resize"] = 1 << 20

    def other_input(index: dict[str, Any]) -> None:
        index["preprocessing"]["input"] = "other"

    def beyond(index: dict[str, Any]) -> None:
        index["preprocessing"]["std"] = [1e-40]

    for change in (drop_hash, drop_preprocessing, unknown_key, huge, other_input, beyond):
        status, document = verify(altered(photo_bundle, tmp_path, change))
        code = "bundle-reference" if change is other_input else "bundle-index"
        assert (status, document["error"]["code"]) == (2, code), change


@pytest.mark.parametrize("kind", ["none", "NaN", "few"])
def test_probes_that_say_nothing_pass_nothing(
    photo_bundle: Path, tmp_path: Path, kind: str
) -> None:
    with zipfile.ZipFile(photo_bundle) as archive:
        index = json.loads(archive.read("bundle.json"))
        (name,) = index["reference"]["raw"]["probes"]
        probes = np.load(io.BytesIO(archive.read(name)))
    other_decoder(index)
    if kind == "NaN":
        probes[0, 0] = np.nan
    else:
        probes = probes[:, : {"none": 0, "few": 5}[kind]]
    stream = io.BytesIO()
    np.save(stream, probes)
    path = tmp_path / "altered.edgepack"
    reseal(photo_bundle, path, {name: stream.getvalue()}, index=index)
    status, document = verify(path)
    if kind == "few":
        assert names_of_missed(document, "preprocessing")
    else:
        assert (status, document["error"]["code"]) == (2, "bundle-reference")


def test_run_names_the_classes(photo_home: Path, photo_bundle: Path) -> None:
    done = run_bundle(photo_bundle, "run", str(photo_home / "evaluation"), "--json", "--top", "2")
    assert done.returncode == 0, done.stderr
    predictions = json.loads(done.stdout)["predictions"]
    assert len(predictions) == 40
    model = load(photo_bundle)
    for entry in predictions[:3]:
        outputs = model.run(model.preprocess(entry["file"]))["scores"][0]
        best = np.argsort(-outputs)[:2]
        assert [row["index"] for row in entry["top"]] == best.tolist()
        assert [row["name"] for row in entry["top"]] == [NAMES[index] for index in best]
        weights = np.exp(outputs - outputs.max())
        shares = [row["probability"] for row in entry["top"]]
        np.testing.assert_allclose(shares, (weights / weights.sum())[best], rtol=1e-5)


def test_run_prints_the_likeliest_classes(photo_home: Path, photo_bundle: Path) -> None:
    picture = sorted((photo_home / "evaluation").rglob("*.jpg"))[3]
    done = run_bundle(photo_bundle, "run", str(picture))
    lines = done.stdout.splitlines()
    assert lines[0] == str(picture)
    assert len(lines) == 6
    assert lines[1].split()[1] == "%"
    assert lines[1].split()[2] in NAMES
    piped = subprocess.run(
        [sys.executable, str(photo_bundle), "run", "-"],
        input=picture.read_bytes(),
        capture_output=True,
    )
    assert piped.stdout.decode().splitlines() == ["-", *lines[1:]]


def test_a_file_that_is_no_picture_leaves_the_others(
    photo_home: Path, photo_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    files = [str(tmp_path / "text.jpg"), str(next((photo_home / "evaluation").rglob("*.jpg")))]
    done = run_bundle(photo_bundle, "run", *files, "--json")
    assert done.returncode == 2
    refused, answered = json.loads(done.stdout)["predictions"]
    assert refused["error"]["code"] == "picture-unreadable"
    assert "text.jpg" in refused["error"]["what"]
    assert len(answered["top"]) == 5


def test_labels_beside_the_pictures_of_a_folder_are_no_pictures(
    photo_home: Path, photo_bundle: Path, tmp_path: Path
) -> None:
    for name in ("labels.csv", "DATA.YAML", "instances.json", "classes.txt", ".hidden"):
        (tmp_path / name).write_text("file,label")
    shutil.copy(next((photo_home / "evaluation").rglob("*.jpg")), tmp_path / "a.jpg")
    done = run_bundle(photo_bundle, "run", str(tmp_path), "--json")
    assert done.returncode == 0
    [answered] = json.loads(done.stdout)["predictions"]
    assert answered["file"] == str(tmp_path / "a.jpg")
    # A file that is named is not skipped.
    done = run_bundle(photo_bundle, "run", str(tmp_path / "labels.csv"), "--json")
    assert done.returncode == 2


def test_the_report_and_info_state_the_preprocessing(photo_bundle: Path) -> None:
    with Archive(str(photo_bundle)) as archive:
        document = read_index(archive).preprocessing
    assert document is not None
    words = describe_preprocessing(document.value)
    # Every setting that a user states, in an order that people read.
    assert re.match(r"pictures: resize .*, bilinear, rgb, nchw, scale 1/255, mean .*, std ", words)
    assert words in run_bundle(photo_bundle, "info").stdout
    report = validate(json.loads(zipfile.ZipFile(photo_bundle).read("report/report.json")))
    assert report["preprocessing"]["passed"]
    assert words in render_html(report)
    console = Console(file=io.StringIO(), width=100)
    render_terminal(report, console)
    assert re.search(r"preprocessing +. Bit-exact", console.file.getvalue())
    # Its gates count: a report that passed although one was missed contradicts itself.
    report["preprocessing"] = {**report["preprocessing"], "passed": False}
    with pytest.raises(EdgepackError, match=r"preprocessing\.passed is False"):
        validate(report)


def test_predict_takes_paths_bytes_and_arrays(photo_home: Path, photo_bundle: Path) -> None:
    model = load(photo_bundle)
    path = next((photo_home / "evaluation").rglob("*.jpg"))
    by_path = model.predict(path)
    by_bytes = model.predict(path.read_bytes())
    by_array = model.predict(model.preprocess(str(path)))
    assert by_path.top == by_bytes.top == by_array.top
    assert model.preprocess([path, path])["image"].shape == (2, 3, 32, 32)
    assert by_path.outputs["scores"].shape == (1, len(NAMES))


def test_the_host_s_loader_reads_it_too(photo_bundle: Path) -> None:
    with Local() as device:
        verdict = verify_bundle(device, device.put(photo_bundle))
    assert verdict["verdict"] == "PASS"
    assert verdict["preprocessing"] is not None
    assert verdict["hidden"] == ["torch", "edgepack"]


def test_a_device_without_pillow_is_told_what_to_install(
    photo_bundle: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "PIL"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('no PIL here')\n")
    done = subprocess.run(
        [sys.executable, str(photo_bundle), "verify", "--json"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (2, "package-missing")
    assert error["hint"] == "python3 -m pip install pillow"


def odd_files() -> list[tuple[str, bytes, str]]:
    """Return 45 files: a name, the contents, and the code of the error, or "" for a picture."""
    files = []
    for width, height in ((640, 427), (427, 640), (50, 50), (37, 400), (36, 36)):
        base = photographs()[width % 2].resize((width, height))
        exif = Image.Exif()
        for orientation in (3, 6, 8):
            exif[0x0112] = orientation
            name = f"{width}x{height} turned {orientation}"
            files.append((name, encode(base, "JPEG", exif=exif), ""))
        alpha = base.convert("RGBA")
        alpha.putalpha(Image.linear_gradient("L").resize(base.size))
        deep = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
        jpeg = encode(base, "JPEG")
        files += [
            (f"{width}x{height} grey", encode(base.convert("L"), "JPEG"), ""),
            (f"{width}x{height} CMYK", encode(base.convert("CMYK"), "JPEG"), ""),
            (f"{width}x{height} RGBA", encode(alpha, "PNG"), ""),
            (f"{width}x{height} progressive", encode(base, "JPEG", progressive=True), ""),
            (f"{width}x{height} 16 bit", encode(deep, "PNG"), "picture-depth"),
            (f"{width}x{height} truncated", jpeg[: len(jpeg) // 2], "picture-unreadable"),
        ]
    return files


def independent_array(data: bytes) -> np.ndarray:
    """Return the array of the manifest's preprocessing, written a second time from its rules."""
    picture = Image.open(io.BytesIO(data))
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}
    turn = {**turns, 8: Image.Transpose.ROTATE_90}.get(picture.getexif().get(0x0112, 1))
    picture = picture.convert("RGB")
    if turn is not None:
        picture = picture.transpose(turn)
    scale = 36 / min(picture.size)
    # The shorter side exactly, the longer one rounded down.
    sides = [36 if side == min(picture.size) else int(side * scale) for side in picture.size]
    picture = picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    left, top = (round((side - 32) / 2) for side in sides)
    pixels = np.asarray(picture, np.float32)[top : top + 32, left : left + 32] / 255
    return ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


def test_odd_pictures_are_converted_or_refused_by_name(photo_bundle: Path) -> None:
    model = load(photo_bundle)
    files = odd_files()
    assert len(files) >= 40
    for name, data, code in files:
        if code:
            with pytest.raises(EdgepackError) as caught:
                model.preprocess(data)
            assert caught.value.code == code, name
            continue
        array = model.preprocess(data)["image"][0]
        np.testing.assert_allclose(array, independent_array(data), atol=1e-5, err_msg=name)


def test_the_reference_feeds_are_the_ones_that_were_hashed(photo_bundle: Path) -> None:
    with Archive(str(photo_bundle)) as archive:
        index = read_index(archive)
        feeds = list(reference_feeds(archive, index))
    assert index.reference.raw is not None
    for feed, digest in zip(feeds, index.reference.raw.sha256[0], strict=True):
        array = feed["image"]
        text = f"{array.dtype.str}{array.shape}".encode()
        assert hashlib.sha256(text + array.tobytes()).hexdigest() == digest
