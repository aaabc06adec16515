"""A bundle that takes recordings of tones, and tells two pitches apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper

from support.build_cases import ask

RATE, LENGTH = 4000, 800
PITCHES = {"high": 900.0, "low": 300.0}
MANIFEST = f"""schema = 1
name = "tones"

[evaluation]
samples = "tones"

[audio]
rate = {RATE}
"""


def tone(pitch: float, rate: int, seconds: float, seed: int) -> np.ndarray:
    """Return a tone in a little noise."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(rate * seconds)) / rate
    clean = 0.4 * np.sin(2 * np.pi * pitch * times + generator.uniform(0, 6))
    return clean + generator.normal(0, 0.01, len(times))


def write_tone(path: Path, samples: np.ndarray, rate: int, subtype: str = "PCM_16") -> None:
    """Write a .wav or, by its suffix, a .flac."""
    soundfile.write(path, samples, rate, subtype=subtype)


def encode(samples: np.ndarray, rate: int, suffix: str = "wav", subtype: str = "PCM_16") -> bytes:
    """Return a recording as a file of some kind."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=suffix, subtype=subtype)
    return stream.getvalue()


def tones_onnx() -> onnx.ModelProto:
    """Return a network that measures the power of the two pitches, by their sines and cosines."""
    times = np.arange(LENGTH) / RATE
    columns = []
    for pitch in PITCHES.values():
        columns += [np.sin(2 * np.pi * pitch * times), np.cos(2 * np.pi * pitch * times)]
    weights = {
        "waves": np.stack(columns, axis=1).astype(np.float32) / 50,
        "pairs": np.repeat(np.eye(2, dtype=np.float32), 2, axis=0),
    }
    nodes = [
        helper.make_node("MatMul", ["wave", "waves"], ["1"]),
        helper.make_node("Mul", ["1", "1"], ["2"]),
        helper.make_node("MatMul", ["2", "pairs"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tones",
        [helper.make_tensor_value_info("wave", TensorProto.FLOAT, ["batch", LENGTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="session")
def audio_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle beside its model, manifest and recordings of several rates and lengths."""
    home = tmp_path_factory.mktemp("tones")
    onnx.save(tones_onnx(), home / "tones.onnx")
    (home / "tones.toml").write_text(MANIFEST)
    for name, pitch in PITCHES.items():
        (home / "tones" / name).mkdir(parents=True)
        for number in range(10):
            rate = (RATE, 11025, 16000)[number % 3]
            samples = tone(pitch, rate, 0.15 + number / 40, number)
            if number % 2:
                samples = np.stack([samples, samples / 2], axis=1)
            suffix = "flac" if number > 6 else "wav"
            write_tone(home / "tones" / name / f"{number}.{suffix}", samples, rate)
    output = home / "tones.edgepack"
    answer = ask(
        "build", str(home / "tones.onnx"), "--manifest", str(home / "tones.toml"),
        "--target", "cpu-fbgemm", "--chain", "none", "--no-emulate", "--latency", "none",
        "--output", str(output),
    )  # fmt: skip
    assert answer.status == 0, answer.stderr
    return output
