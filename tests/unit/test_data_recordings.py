"""Recordings become waveforms at the model's rate, and folders give labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgepack.data import AudioOptions, Classes, open_samples, read_audio
from edgepack.errors import DataError
from edgepack.runtime.errors import InputError
from edgepack.runtime.preprocess.audio import Audio, decode, resample
from edgepack.runtime.tensor import Tensor

WAVEFORM = (Tensor("wave", "float32", ("batch", "samples")),)


def sine(rate: int, frequency: float, seconds: float = 0.25) -> np.ndarray:
    """Return a sine of amplitude 0.5."""
    times = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * frequency * times)


def encode(samples: np.ndarray, rate: int, suffix: str = "wav", subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=suffix, subtype=subtype)
    return stream.getvalue()


def waveform(**options: object) -> Audio:
    return read_audio(None, WAVEFORM, AudioOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_wav_files_are_decoded_as_soundfile_decodes_them(subtype: str) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (501, 2))
    data = encode(noise, 8000, subtype=subtype)
    samples, rate = decode(data, "a.wav")
    expected, expected_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(samples, expected.T)
    assert rate == expected_rate == 8000


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", "PCM_16"), ("wav", "FLOAT")])
def test_other_files_are_read_by_soundfile(suffix: str, subtype: str) -> None:
    samples, rate = decode(encode(sine(8000, 440), 8000, suffix, subtype), "a")
    assert rate == 8000
    np.testing.assert_allclose(samples[0], sine(8000, 440), atol=2**-15)


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (48000, 16000), (8000, 16000)])
def test_another_rate_keeps_tones_below_its_limit_and_removes_those_above(
    rate: int, target: int
) -> None:
    tone = resample(sine(rate, 1000)[None].astype(np.float32), rate, target)[0]
    expected = sine(target, 1000)
    assert len(tone) == len(expected)
    error = (tone - expected)[100:-100]
    assert 10 * np.log10(np.mean(expected**2) / np.mean(error**2)) > 60
    if rate > target:
        alias = resample(sine(rate, 0.75 * target)[None].astype(np.float32), rate, target)[0]
        assert np.abs(alias[100:-100]).max() < 0.002


def test_stereo_is_mixed_and_the_length_is_cropped_or_padded() -> None:
    left = np.arange(6) / 64
    stereo = np.stack([left, 3 * left], axis=1)
    prepare = waveform(rate=8000).prepare
    np.testing.assert_array_equal(prepare(encode(stereo, 8000))["wave"], [2 * left])
    prepare = waveform(rate=8000, length=4).prepare
    np.testing.assert_array_equal(prepare(encode(left, 8000))["wave"], [left[1:5]])
    prepare = waveform(rate=8000, length=8, scale=64.0).prepare
    padded = [[0, 1, 2, 3, 4, 5, 0, 0]]
    np.testing.assert_array_equal(prepare(encode(left, 8000))["wave"], padded)


@pytest.mark.parametrize("masked", [True, False])
def test_a_recording_is_normalized_as_transformers_does(tmp_path: Path, masked: bool) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    samples = 0.1 + sine(16000, 300)
    data = encode(samples, 16000)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=masked)
    extractor.save_pretrained(tmp_path)
    audio = read_audio(tmp_path, WAVEFORM, AudioOptions(length=5000))
    prepared = audio.prepare(data)["wave"]
    decoded, _ = decode(data, "a")
    expected = extractor(
        decoded[0], sampling_rate=16000, padding="max_length", max_length=5000, return_tensors="np"
    )
    assert prepared.shape == (1, 5000)
    np.testing.assert_allclose(prepared, expected["input_values"], atol=2e-6)


def test_a_hugging_face_folder_states_rate_and_normalization(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    config = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000}
    path.write_text(json.dumps(config))
    audio = read_audio(tmp_path, WAVEFORM, AudioOptions())
    assert (audio.rate, audio.normalize, audio.length) == (16000, "unit-variance-padded", None)
    path.write_text(json.dumps({**config, "feature_extractor_type": "ASTFeatureExtractor"}))
    with pytest.raises(DataError) as caught:
        read_audio(tmp_path, WAVEFORM, AudioOptions())
    assert caught.value.code == "audio-features"


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "length"),
    [
        (("batch", 16000), "samples", 1, 16000),
        (("batch", 1, "samples"), "channels-samples", 1, None),
        (("batch", 2, 800), "channels-samples", 2, 800),
        (("batch", "samples", 1), "samples-channels", 1, None),
    ],
)
def test_the_input_decides_layout_channels_and_length(
    shape: tuple[int | str, ...], layout: str, channels: int, length: int | None
) -> None:
    audio = read_audio(None, (Tensor("x", "float32", shape),), AudioOptions(rate=8000))
    assert (audio.layout, audio.channels, audio.length) == (layout, channels, length)
    feed = audio.prepare(encode(sine(8000, 440), 8000))["x"]
    assert len(feed.shape) == len(shape)
    for size, dim in zip(feed.shape, shape, strict=True):
        assert isinstance(dim, str) or size == dim


@pytest.mark.parametrize(
    ("inputs", "options", "code"),
    [
        (WAVEFORM, AudioOptions(), "audio-rate"),
        ((Tensor("x", "float32", ("b", 80, 80, 1)),), AudioOptions(rate=8000), "audio-inputs"),
        ((Tensor("x", "float32", ("b", 80)),), AudioOptions(rate=8000, length=9), "audio-length"),
    ],
)
def test_a_conversion_that_does_not_fit_the_model_is_refused(
    inputs: tuple[Tensor, ...], options: AudioOptions, code: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_audio(None, inputs, options)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "audio-unreadable"),
        (b"RIFF1234WAVEfmt ", "audio-unreadable"),
        (encode(np.zeros(0), 8000), "audio-empty"),
    ],
)
def test_a_broken_recording_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        waveform(rate=8000).prepare(data)
    assert caught.value.code == code


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two recordings of each of two classes, in class folders."""
    for name, frequency in (("high", 2000.0), ("low", 200.0)):
        (tmp_path / name).mkdir()
        for number in range(2):
            tone = sine(8000, frequency * (1 + number / 10), 0.01)
            (tmp_path / name / f"{number}.wav").write_bytes(encode(tone, 8000))
    return tmp_path


def labels_of(folder: Path, *class_names: str) -> list[int]:
    audio = waveform(rate=8000, length=80)
    samples = open_samples(
        str(folder), WAVEFORM, preprocessing=audio, classes=Classes(class_names, "x")
    )
    (batch,) = samples.batches(9)
    assert batch.raw is not None
    assert batch.inputs["wave"].shape == (4, 80)
    assert batch.labels is not None
    return list(batch.labels)


def test_labels_are_the_folders_in_the_order_of_the_models_classes(recordings: Path) -> None:
    assert labels_of(recordings) == [0, 0, 1, 1]
    assert labels_of(recordings, "low", "high", "silence") == [1, 1, 0, 0]


def test_labels_of_a_table_are_numbers_or_names(recordings: Path) -> None:
    table = recordings / "labels.csv"
    files = ("high/0.wav", "high/1.wav", "low/0.wav", "low/1.wav")
    table.write_text("file,label\n" + "".join(f"{name},{i}\n" for i, name in enumerate(files)))
    assert labels_of(recordings) == [0, 1, 2, 3]
    table.write_text("file,label\n" + "".join(f"{name},{name[:3]}\n" for name in files))
    assert labels_of(recordings, "low", "hig") == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("name,label\n", "pictures-labels"),
        ("file,label\nhigh/0.wav,0\n", "pictures-labels"),
    ],
)
def test_a_table_that_does_not_match_the_files_is_refused(
    recordings: Path, table: str, code: str
) -> None:
    (recordings / "labels.csv").write_text(table)
    with pytest.raises(DataError) as caught:
        labels_of(recordings)
    assert caught.value.code == code


def test_recordings_need_a_rate(recordings: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_samples(str(recordings), WAVEFORM)
    assert caught.value.code == "audio-preprocessing-missing"


def test_pictures_among_recordings_are_refused(recordings: Path) -> None:
    (recordings / "cover.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_samples(str(recordings), WAVEFORM)
    assert caught.value.code == "samples-folder-mixed"
