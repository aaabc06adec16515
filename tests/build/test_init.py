"""`edgepack init`: a manifest that validates and builds, from the model and its data alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.spec import manifest, toml_reader
from support.audio_cases import write_tone
from support.build_cases import Home, ask, images
from support.picture_sets import write_class_folders, write_coco, write_yolo

COMMENTED = re.compile(r"^# (?=\[.+\]$|\w+ = .+$)", re.M)


def draft(model: str | Path, output: Path, *options: str | Path) -> Any:
    answer = ask("init", str(model), "--output", str(output), *map(str, options))
    assert answer.status == 0, answer.stderr
    assert answer.document["manifest"] == str(output)
    return manifest.load(output)


def build(model: str | Path, settings: Path, *options: str) -> None:
    answer = ask("build", str(model), "--target", "cpu-fbgemm", "--manifest", str(settings),
                 "--no-emulate", "--latency", "none",
                 "--output", str(settings.with_suffix(".edgepack")), *options)  # fmt: skip
    assert answer.status == 0, answer.stderr


def test_an_onnx_file_with_arrays(home: Home, tmp_path: Path) -> None:
    """A folder with both roles: both are used, by paths relative to the manifest."""
    path = tmp_path / "tiny.toml"
    settings = draft(home / "tiny.onnx", path, "--data", home.folder)
    assert settings.name == "tiny"
    assert [str(tensor) for tensor in settings.inputs] == ["image:float32:batch,1,16,16"]
    assert (tmp_path / settings.calibration).samefile(home / "calibration.npz")
    assert (tmp_path / settings.evaluation).samefile(home / "evaluation.npz")
    build(home / "tiny.onnx", path)


@pytest.mark.parametrize("target", ["cpu-fbgemm", "arm-qnnpack", "cuda-fp16", "tensorrt-int8"])
def test_every_default_that_it_shows_is_valid(target: str, home: Home, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    draft(home / "tiny.onnx", path, "--target", target)
    text = COMMENTED.sub("", path.read_text())
    assert toml_reader.faults(toml_reader.parse(text, path), "manifest") == []
    path.write_text(text)
    answer = ask("manifest", "check", str(path), "--target", target)
    assert answer.status == 0, answer.stderr


def test_an_option_loses_only_its_comment_sign(home: Home, tmp_path: Path) -> None:
    """The tables have active headers, so that an option belongs to the table it stands in."""
    path = tmp_path / "m.toml"
    settings = draft(home / "tiny.onnx", path, "--data", home.folder)
    assert (settings.read_table("quantize"), settings.quality) == ({}, {})
    text = path.read_text()
    assert "One of full, reduced, pair-safe." in text
    for line in ('calibrator = "mse"', "snr_db = "):
        text = text.replace(f"# {line}", line)
    path.write_text(text)
    settings = manifest.load(path)
    assert settings.read_table("quantize") == {"calibrator": "mse"}
    assert list(settings.quality) == ["snr_db"]


def test_weights_without_their_network(torch_home: Home, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    settings = draft(torch_home / "tiny.safetensors", path, "--data", home_samples(torch_home))
    assert [str(tensor) for tensor in settings.inputs] == ["image:float32:batch,1,16,16"]
    assert "name the function that returns the network" in path.read_text()
    build(torch_home / "tiny.safetensors", path, "--arch", f"{torch_home / 'nets.py'}:tiny")


def home_samples(home: Home) -> Path:
    return Path(home / "calibration.npz")


def test_an_exported_program(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(module.eval(), (torch.zeros(2, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    samples = np.random.default_rng(0).standard_normal((120, 8)).astype(np.float32)
    np.save(tmp_path / "samples.npy", samples)
    path = tmp_path / "net.toml"
    settings = draft(tmp_path / "net.pt2", path, "--data", tmp_path / "samples.npy")
    assert len(settings.inputs) == 1
    build(tmp_path / "net.pt2", path)


def test_a_folder_of_pictures(home: Home, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "pictures").mkdir()
    for index, array in enumerate(images(110, 3)):
        pixels = np.clip((array[0] - array.min()) / np.ptp(array) * 255, 0, 255).astype(np.uint8)
        image.fromarray(pixels).save(tmp_path / "pictures" / f"{index:03}.png")
    path = tmp_path / "tiny.toml"
    options = ("--data", str(tmp_path / "pictures"), "--output", str(path))
    assert ask("init", str(home / "tiny.onnx"), *options).status == 0
    # The model does not say how its pictures were normalised, so the user has to.
    refused = ask("manifest", "check", str(path))
    assert (refused.status, refused.code) == (2, "pictures-incomplete")
    path.write_text(path.read_text().replace('# normalize = "0.5"', 'normalize = "none"'))
    assert manifest.load(path).pictures == {
        "resize": (16, 16),
        "colour": "grey",
        "layout": "nchw",
        "mean": (0.0,),
        "std": (1.0,),
    }
    build(home / "tiny.onnx", path)


@pytest.mark.parametrize("layout", ["classes", "parts", "coco", "yolo"])
def test_pictures_of_any_layout_are_one_source(home: Home, tmp_path: Path, layout: str) -> None:
    """A split is drafted unless the data have parts for calibration and evaluation."""
    folder = tmp_path / "data"
    source = folder
    if layout == "classes":
        write_class_folders(folder, ["cat", "dog"])
    elif layout == "parts":
        for part in ("train", "val"):
            write_class_folders(folder / part, ["cat", "dog"])
    elif layout == "coco":
        write_coco(folder)
    else:
        source = write_yolo(folder)
    path = tmp_path / "m.toml"
    options = ("--data", str(source), "--output", str(path))
    assert ask("init", str(home / "tiny.onnx"), *options).status == 0
    path.write_text(path.read_text().replace('# normalize = "0.5"', 'normalize = "none"'))
    settings = manifest.load(path)
    assert (tmp_path / settings.samples).samefile(source)
    assert settings.split == (0.2 if layout in ("classes", "coco") else None)


def test_recordings_are_one_source_of_a_rate_to_confirm(home: Home, tmp_path: Path) -> None:
    for name in ("high", "low"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        write_tone(tmp_path / "clips" / name / "a.wav", np.zeros(80), 11025)
    path = tmp_path / "m.toml"
    # The model does not say the rate of its training, so the user has to.
    settings = draft(home / "tiny.onnx", path, "--data", tmp_path / "clips")
    assert settings.audio == {}
    path.write_text(path.read_text().replace("# rate = 11025", "rate = 11025"))
    settings = manifest.load(path)
    assert (tmp_path / settings.samples).samefile(tmp_path / "clips")
    assert (settings.split, settings.audio) == (0.2, {"rate": 11025})


def test_a_table_of_texts_is_divided(home: Home, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,1\n")
    settings = draft(home / "tiny.onnx", tmp_path / "m.toml", "--data", tmp_path / "a.csv")
    assert (settings.split, Path(settings.samples).name) == (0.2, "a.csv")


def test_a_file_is_not_overwritten(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("schema = 1\n")
    answer = ask("init", str(home / "tiny.onnx"), "--output", str(path))
    assert (answer.status, answer.code) == (2, "manifest-exists")
    assert path.read_text() == "schema = 1\n"


def test_data_that_is_not_there(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    answer = ask("init", str(home / "tiny.onnx"), "--data", "nothere", "--output", str(path))
    assert (answer.status, answer.code) == (2, "samples-not-found")
    assert not path.exists()
