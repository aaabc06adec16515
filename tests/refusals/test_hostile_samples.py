"""Raw samples, their preprocessing, and annotations that somebody made to do harm."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from edgepack.data.layouts.class_names import Classes
from edgepack.data.layouts.coco import read_coco, read_document
from edgepack.data.layouts.labels_csv import read_labels_csv
from edgepack.data.layouts.yolo import read_yaml, read_yolo
from edgepack.errors import DataError
from edgepack.runtime.errors import InputError
from edgepack.runtime.preprocess.audio import Audio
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.preprocess.text import Field, Text
from support.picture_cases import encode

AUDIO = Audio(input="wave", dtype="float32", layout="samples", rate=16_000)
PANICS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises((InputError, DataError)) as caught:
        act()
    assert len(str(caught.value)) < 2000
    return caught.value.code


def wav(rate: int, count: int) -> bytes:
    """Return a WAV file whose header states a rate."""
    body = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 0, 2, 16)
    body += b"data" + struct.pack("<I", 2 * count) + b"\1\0" * count
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


@pytest.mark.parametrize("rate", [1, 15_999 * 7919, 2**32 - 1])
def test_a_rate_that_would_take_all_memory_is_refused(rate: int) -> None:
    assert code_of(lambda: AUDIO.prepare(wav(rate, 200_000))) == "audio-rate"


def test_a_flac_file_is_as_long_as_its_header_says() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(4000), 16_000, format="FLAC")
    data = bytearray(stream.getvalue())
    data[21] |= 0x0F  # the 36 bits of the number of samples
    data[22:26] = b"\xff" * 4
    assert code_of(lambda: AUDIO.prepare(bytes(data))) == "audio-unreadable"


def test_a_chunk_beyond_the_end_of_a_wav_file_is_an_error() -> None:
    data = b"RIFF" + struct.pack("<I", 40) + b"WAVELIST" + struct.pack("<I", 1 << 30) + bytes(28)
    assert code_of(lambda: AUDIO.prepare(data)) == "audio-unreadable"


@pytest.mark.parametrize("kind", ["EPS", "PCX", "SGI"])
def test_only_usual_pictures_are_decoded(kind: str) -> None:
    data = encode(Image.new("RGB", (8, 8)), kind)
    assert code_of(lambda: Picture().to_array(data)) == "picture-unreadable"


@pytest.mark.parametrize(
    "change", [{"mean": (1e39,)}, {"std": (1e-40,)}, {"scale": 1e39}, {"dtype": "object"}]
)
def test_constants_beyond_float32_are_a_fault(change: dict[str, object]) -> None:
    assert Picture(**change).find_fault() is not None  # type: ignore[arg-type]


def text(document: dict[str, object], *, pair: bool = False) -> Text:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "u"}
    whole = {"version": "1.0", "added_tokens": [], "model": model, **document}
    tokenizer = json.dumps(whole).encode()
    return Text(tokenizer, (Field("ids", "ids", "int64"),), 8, pair=pair)


def test_a_tokenizer_that_fails_or_panics_is_named() -> None:
    assert code_of(lambda: text({}).prepare(b"c")) == "text-unreadable"
    panicking = text({"pre_tokenizer": PANICS})
    assert code_of(lambda: panicking.prepare(b"a" * 40 + b"!")) == "text-unreadable"


def test_a_text_without_end_is_refused_before_the_tokenizer_reads_it() -> None:
    assert code_of(lambda: text({}).prepare(b"a " * 600_000)) == "text-too-long"
    assert code_of(lambda: text({}, pair=True).prepare(b"[" * 100_000)) == "text-pair"


def write_yolo(folder: Path, content: str) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.png")
    (folder / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    path = folder / "data.yaml"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b]\ntrain: images\n",
        "train: /proc/self/environ\nnames: [a]\n",
        f"train: {'x' * 5000}\nnames: [a]\n",
        "train: images\nnames: [!!python/object/apply:os.getcwd []]\n",
    ],
)
def test_a_data_yaml_is_data_and_shows_no_other_file(tmp_path: Path, content: str) -> None:
    path = write_yolo(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_yolo(path, read_yaml(path), "calibration", Classes())
    assert caught.value.code in ("yolo-invalid", "pictures-missing")
    assert "PATH=" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "box"),
    [("../a.png", 1), ("/etc/a.png", 1), ("a.png", 10**400), ("x" * 5000, 1), ("\ud800.png", 1)],
)
def test_coco_reads_pictures_below_its_folder_alone(tmp_path: Path, file: str, box: int) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "below").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "below" / "a.png")
    document = {
        "images": [{"id": 1, "file_name": file}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, box, 1]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = tmp_path / "below" / "x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        read_coco(path, read_document(path), Classes())
    assert caught.value.code in ("coco-invalid", "pictures-missing")


@pytest.mark.parametrize("label", ["9" * 30, "-" + "9" * 5000])
def test_an_index_of_many_digits_is_no_class(tmp_path: Path, label: str) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,{label}\n")
    assert code_of(lambda: read_labels_csv(tmp_path, (picture,), Classes())) == "classes-range"
