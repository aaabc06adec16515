"""Samples from recordings: WAV, FLAC and other files of sound."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgepack.data.layouts.class_names import Classes
from edgepack.data.raw.files import open_files
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.runtime.plain import read_plain
from edgepack.runtime.preprocess.audio import DTYPES, Audio
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Dim, Tensor

SUFFIXES = frozenset((".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav"))
PREPROCESSOR = "preprocessor_config.json"
MAX_CONFIG = 16 << 20
_WAVEFORM = "Wav2Vec2FeatureExtractor"


@dataclass(frozen=True)
class AudioOptions:
    """Table [audio] of a manifest; absent settings are None.

    Attributes:
        rate: samples per second.
        length: number of samples.
        channels: number of channels.
        scale: factor on samples of -1 to 1.
        normalize: "none", "unit-variance" or "unit-variance-padded".
    """

    rate: int | None = None
    length: int | None = None
    channels: int | None = None
    scale: float | None = None
    normalize: str | None = None


def read_audio(folder: Path | None, inputs: tuple[Tensor, ...], options: AudioOptions) -> Audio:
    """Return the conversion of a recording for a model.

    Args:
        folder: a Hugging Face folder, whose preprocessor states rate and normalization; None
            for another model.
        inputs: of the model.
        options: the user's, which replace those of the folder.

    Raises:
        DataError: audio-inputs, audio-rate, audio-length, audio-features.
    """
    tensor, layout = _require_waveform(inputs)
    audio = Audio(tensor.name, tensor.dtype, layout, rate=0)
    if folder is not None:
        audio = _apply_preprocessor(audio, folder / PREPROCESSOR)
    settings = {key: value for key, value in vars(options).items() if value is not None}
    audio = replace(audio, **settings)
    if not audio.rate:
        raise DataError(
            "audio-rate",
            "the model's rate of samples is unknown",
            why="neither the manifest nor the model states it",
            hint="set that of the training in the manifest: [audio] rate = 16000",
        )
    return _fit(audio, tensor)


def describe(audio: Audio) -> str:
    """Return the conversion in words, for the ledger."""
    length = "entire recordings"
    if audio.length is not None:
        length = f"{audio.length:,} samples ({audio.length / audio.rate:.3g} s)"
    channels = "mixed down to mono"
    if audio.channels > 1:
        channels = f"{audio.channels} channels"
    return (
        f"recordings become {audio.input}: {audio.rate:,} samples per second, {channels}, "
        f"{length}; values from -1 to 1 times {audio.scale:g}, normalize = {audio.normalize!r}"
    )


def open_recordings(
    folder: Path,
    paths: Sequence[Path],
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    *,
    origin: str,
    classes: Classes | None = None,
) -> SampleStream:
    """Open the recordings of a folder, with labels from class folders or `labels.csv`.

    Raises:
        DataError: the preprocessing is missing, or the labels do not match the recordings.
    """
    if not isinstance(preprocessing, Audio):
        raise DataError(
            "audio-preprocessing-missing",
            f"there is no preprocessing for the recordings in {folder}",
            why="rate and length must match the training",
            hint="declare them in the manifest, in the table [audio]: rate = 16000\n"
            f"edgepack init MODEL --data {folder} drafts it",
        )
    origin = f"{origin} ({len(paths):,} recordings)"
    return open_files(folder, paths, inputs, preprocessing, origin=origin, classes=classes)


def _require_waveform(inputs: tuple[Tensor, ...]) -> tuple[Tensor, str]:
    """Return the model's only input, and the layout of its axes."""
    # (batch, 16000) are samples; (batch, 1, samples) has channels first, (batch, samples, 2) last.
    if len(inputs) == 1 and inputs[0].dtype in DTYPES:
        tensor = inputs[0]
        if tensor.rank == 2:
            return tensor, "samples"
        if tensor.rank == 3:
            last = tensor.shape[2]
            if isinstance(last, int) and last <= 8 and tensor.shape[1] not in range(1, 9):
                return tensor, "samples-channels"
            return tensor, "channels-samples"
    raise DataError(
        "audio-inputs",
        "recordings feed a model with one input: a waveform",
        why=f"the model's inputs: {', '.join(map(str, inputs))}",
        hint="for spectrograms and other features write your own function: "
        '[preprocess] code = "preprocess.py:prepare"',
    )


def _apply_preprocessor(audio: Audio, path: Path) -> Audio:
    """Return the conversion with the rate and normalization of a Hugging Face preprocessor."""
    if not path.exists():
        return audio
    try:
        document = json.loads(read_plain(path, MAX_CONFIG))
        if not isinstance(document, Mapping):
            raise TypeError(f"it is a {type(document).__name__}, not an object")
        # {"feature_extractor_type": "WhisperFeatureExtractor"} makes spectrograms: not supported.
        kind = document.get("feature_extractor_type", _WAVEFORM)
        rate = int(document.get("sampling_rate", 0))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            "audio-features",
            f"{path} cannot be read",
            why=str(error),
            hint="save it again with save_pretrained",
        ) from error
    if kind != _WAVEFORM:
        raise DataError(
            "audio-features",
            f"{kind} computes features that bundles cannot",
            why="bundles convert recordings to waveforms",
            hint='write your own function: [preprocess] code = "preprocess.py:prepare"',
        )
    normalize = "none"
    if document.get("do_normalize", True):
        # Without a mask, transformers cannot tell padding from silence.
        masked = document.get("return_attention_mask", False)
        normalize = "unit-variance" if masked else "unit-variance-padded"
    return replace(audio, rate=rate, normalize=normalize)


def _fit(audio: Audio, tensor: Tensor) -> Audio:
    """Return the conversion with the fixed sizes of the input; refuse others."""
    channels: Dim = 1
    length = tensor.shape[1]
    if audio.layout == "samples-channels":
        channels = tensor.shape[2]
    elif audio.layout == "channels-samples":
        channels, length = tensor.shape[1], tensor.shape[2]
    # An input (batch, 2, 16000) decides both: two channels of 16,000 samples.
    if isinstance(channels, int) and channels != audio.channels:
        audio = replace(audio, channels=channels)
    if isinstance(length, int):
        if audio.length not in (None, length):
            raise DataError(
                "audio-length",
                "the recordings do not get the model's length",
                why=f"length is {audio.length}; the model takes {length} samples",
                hint=f"set length = {length} in the manifest, or remove it",
            )
        audio = replace(audio, length=length)
    return audio
