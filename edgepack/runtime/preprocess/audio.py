"""Conversion of a recording to the waveform that a model takes."""

from __future__ import annotations

import io
import math
import platform
import wave
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Dict, Mapping, Optional, Tuple

import numpy as np

from ..errors import DeviceError, InputError

if TYPE_CHECKING:
    from ..strict_json import Reader
    from .protocol import ReadFile

NORMALIZATIONS = ("none", "unit-variance", "unit-variance-padded")
LAYOUTS = ("samples", "channels-samples", "samples-channels")
DTYPES = ("float32", "float64", "float16")
REQUIREMENT = "soundfile>=0.12"
MAX_RATE = 1 << 20
# Longest recording in samples of all channels, before and after resampling: 17 minutes of stereo at
# 48 kHz. A FLAC file of silence is 300 times smaller than its samples.
MAX_SAMPLES = 100_000_000
# Largest filter of a resampler: 44,100 to 16,000 Hz has 5,600 taps, 44,099 to 16,000 Hz 560,000.
MAX_TAPS = 1 << 21
# Largest factor on samples of -1 to 1.
MOST = 1e12
# The filter of the resampler: zero crossings of the sinc on each side, and the share of the lower
# Nyquist frequency that passes.
_CROSSINGS = 6
_ROLLOFF = 0.99


@dataclass(frozen=True)
class Audio:
    """Conversion of a recording to a feed.

    Attributes:
        input: name of the model's input.
        dtype: numpy's name of its element type.
        layout: one of LAYOUTS, the axes after the batch.
        rate: samples per second.
        length: number of samples; None keeps the entire recording.
        channels: number of channels; 1 mixes all of them down by their mean.
        scale: factor on samples of -1 to 1.
        normalize: "none"; "unit-variance" subtracts the mean of the recording and divides by its
            standard deviation; "unit-variance-padded" does so after the recording is padded.
    """

    input: str
    dtype: str
    layout: str
    rate: int
    length: Optional[int] = None
    channels: int = 1
    scale: float = 1.0
    normalize: str = "none"

    @property
    def takes_text(self) -> bool:
        """False: a string is the path of a file."""
        return False

    @property
    def least_db(self) -> Optional[float]:
        """SNR in dB of arrays that another decoder, or the sines of another processor, made."""
        return 60.0

    @property
    def noise(self) -> float:
        """0: the SNR alone counts."""
        return 0.0

    @classmethod
    def read(cls, reader: Reader, read_file: ReadFile) -> Audio:
        """Read the document of `to_json`. Raises the reader's error if it is not valid."""
        length = None
        if reader.value.get("length") is not None:
            length = _read_number(reader, "length", MAX_SAMPLES)
        channels = _read_number(reader, "channels", 64)
        if channels * (length or 0) > MAX_SAMPLES:
            raise reader.fault(f"length is {length} for {channels} channels")
        scale = float(reader.get("scale", int, float))
        if abs(scale) > MOST:
            raise reader.fault(f"scale is {scale}")
        return cls(
            input=reader.get("input", str),
            dtype=_read_choice(reader, "dtype", DTYPES),
            layout=_read_choice(reader, "layout", LAYOUTS),
            rate=_read_number(reader, "rate", MAX_RATE),
            length=length,
            channels=channels,
            scale=scale,
            normalize=_read_choice(reader, "normalize", NORMALIZATIONS),
        )

    def to_json(self) -> Dict[str, object]:
        """Return the document in `bundle.json`."""
        return {"kind": "audio", **vars(self)}

    def files(self) -> Mapping[str, bytes]:
        """Return no entries: the document is all."""
        return {}

    def requirements(self) -> Tuple[str, ...]:
        """Return the requirement of soundfile."""
        return (REQUIREMENT,)

    def versions(self) -> Dict[str, str]:
        """Return the versions of soundfile and libsndfile, and the processor, whose sines differ.

        WAV files of integers, and so perhaps all samples, need no package, so one may be missing.
        """
        versions = {"machine": platform.machine()}
        try:
            import soundfile
        except (ImportError, OSError):
            return versions
        versions["soundfile"] = str(soundfile.__version__)
        versions["libsndfile"] = str(soundfile.__libsndfile_version__)
        return versions

    def prepare(self, data: bytes, name: str = "") -> Dict[str, np.ndarray]:
        """Return the feed of one recording, a WAV or FLAC file.

        A recording that is longer than `length` is cropped at its centre, a shorter one padded
        with silence at its end.

        Raises:
            InputError: audio-unreadable, audio-empty, audio-channels, audio-rate.
            DeviceError: package-missing.
        """
        # For length=4, [1 2 3 4 5 6] becomes [2 3 4 5], and [1 2] becomes [1 2 0 0].
        name = name or "the recording"
        samples, rate = decode(data, name)
        _require_rate(rate, self.rate, samples.shape[1] * self.channels, name)
        samples = _mix(samples, self.channels, name)
        samples = resample(samples, rate, self.rate)
        if self.length is not None:
            start = max(0, (samples.shape[1] - self.length) // 2)
            samples = samples[:, start : start + self.length]
        # Silence would lower the variance, so this comes before the padding.
        if self.normalize == "unit-variance":
            samples = _normalize(samples)
        if self.length is not None:
            missing = self.length - samples.shape[1]
            samples = np.pad(samples, ((0, 0), (0, missing)))
        if self.normalize == "unit-variance-padded":
            samples = _normalize(samples)
        if self.scale != 1.0:
            samples = samples * np.float32(self.scale)
        if self.layout == "samples":
            samples = samples[0]
        elif self.layout == "samples-channels":
            samples = samples.T
        # In float16 a scale of a thousand reaches infinity, of which the model's answers tell.
        with np.errstate(over="ignore"):
            return {self.input: np.ascontiguousarray(samples[None], dtype=self.dtype)}


def decode(data: bytes, name: str) -> Tuple[np.ndarray, int]:
    """Return a recording as float32 (channels, samples) of -1 to 1, and its rate.

    WAV files of 8, 16, 24 and 32 bits need numpy alone; FLAC and everything else is read by
    soundfile, with the same result for the same integers.

    Raises InputError audio-unreadable or audio-empty, DeviceError package-missing.
    """
    samples, rate = _read_wave(data) or _read_soundfile(data, name)
    if not samples.size:
        raise InputError(
            "audio-empty",
            f"{name} is empty",
            why="it has no samples",
            hint="remove it",
        )
    _require_length(samples.size, name)
    return samples, rate


def _require_length(count: int, name: str) -> None:
    if count > MAX_SAMPLES:
        raise InputError(
            "audio-unreadable",
            f"{name} is too long",
            why=f"{count:,} samples; at most {MAX_SAMPLES:,} are read",
            hint="cut it into pieces",
        )


def _require_rate(rate: int, target: int, count: int, name: str) -> None:
    """Refuse a rate whose conversion takes too much memory or time.

    Args:
        rate: samples per second of the recording, as its header states them.
        target: of the model.
        count: of the samples, in all channels of the model.
        name: of the recording, for the message.
    """
    # 8 million samples at 1 Hz, a file of 16 MB, would become 128 billion at 16 kHz.
    step, phases = rate // math.gcd(rate, target), target // math.gcd(rate, target)
    taps = phases * (2 * _reach(step, phases) + 1)
    if count * phases > MAX_SAMPLES * step or taps > MAX_TAPS:
        raise InputError(
            "audio-rate",
            f"{name} cannot be brought to the model's rate",
            why=f"{count:,} samples at {rate:,} Hz; the model takes {target:,} Hz",
            hint=f"convert it: ffmpeg -i FILE -ar {target} recording.wav",
        )


def _reach(step: int, phases: int) -> int:
    """Return the number of samples on each side that the filter of a resampler weighs."""
    return math.ceil(_CROSSINGS / (min(1.0, phases / step) * _ROLLOFF))


def _read_wave(data: bytes) -> Optional[Tuple[np.ndarray, int]]:
    """Decode a WAV file of integers; return None for any other file, even a damaged one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError):  # RuntimeError: a chunk ends beyond the file
        return None
    if width not in (1, 2, 3, 4) or rate < 1 or len(frames) % (width * channels):
        return None
    if width == 1:
        # 8 bits are unsigned, with silence at 128.
        numbers = np.frombuffer(frames, np.uint8).astype(np.float32) - np.float32(128)
    elif width == 3:
        # 24 bits have no type: three bytes become the upper ones of 32.
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        numbers = (padded.reshape(-1).view("<i4") >> 8).astype(np.float32)
    else:
        numbers = np.frombuffer(frames, f"<i{width}").astype(np.float32)
    # 32768 of 16 bits is 1.0; a power of two, so that the division is exact.
    numbers /= np.float32(2.0 ** (8 * width - 1))
    return np.ascontiguousarray(numbers.reshape(-1, channels).T), rate


def _read_soundfile(data: bytes, name: str) -> Tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the library libsndfile is missing
        raise DeviceError(
            "package-missing",
            f"{name} is not a WAV file of integers; other files need the package soundfile",
            why=str(error),
            hint="python3 -m pip install soundfile",
        ) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # Its header may state any number, and the memory is allocated by it.
            _require_length(file.frames * file.channels, name)
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            "audio-unreadable",
            f"{name} cannot be decoded",
            # The text of a LibsndfileError begins with the address of the stream.
            why=getattr(error, "error_string", "") or str(error),
            hint="convert it to WAV: ffmpeg -i FILE recording.wav",
        ) from error
    return np.ascontiguousarray(samples.T), int(rate)


def _mix(samples: np.ndarray, channels: int, name: str) -> np.ndarray:
    if samples.shape[0] == channels:
        return samples
    if channels == 1:
        mean: np.ndarray = samples.mean(axis=0, keepdims=True, dtype=np.float64)
        return mean.astype(np.float32)
    if samples.shape[0] == 1:
        return np.repeat(samples, channels, axis=0)
    raise InputError(
        "audio-channels",
        f"{name} does not have the model's channels",
        why=f"it has {samples.shape[0]}; the model takes {channels}",
        hint=f"convert it: ffmpeg -i FILE -ac {channels} recording.wav",
    )


def _normalize(samples: np.ndarray) -> np.ndarray:
    # Wav2Vec2FeatureExtractor of transformers adds 1e-7 to the variance.
    wide = samples.astype(np.float64)
    variance = wide.var() + 1e-7
    normalized: np.ndarray = (wide - wide.mean()) / math.sqrt(variance)
    return normalized.astype(np.float32)


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Convert float32 (channels, samples) from one rate to another.

    Band-limited interpolation by a sinc under a Hann window (Smith, Digital Audio Resampling Home
    Page, https://ccrma.stanford.edu/~jos/resample/), with the window, width and cutoff of
    torchaudio's `resample`. n samples become ceil(n * target / rate).
    """
    if rate == target or not samples.size:
        return samples
    divisor = math.gcd(rate, target)
    step, phases = rate // divisor, target // divisor
    first, taps = _filter(step, phases)
    count = -(-samples.shape[1] * phases // step)
    # Output i lies at i * step / phases between the samples: from 48 to 32 kHz (step 3, phases 2),
    # output 5 is at 7.5, so the filter of phase 1 weighs the samples around 7.
    position = np.arange(count) * step
    base, phase = position // phases, position % phases
    width = taps.shape[1]
    padded = np.pad(samples.astype(np.float64), ((0, 0), (-first, width + first + step)))
    output = np.zeros((samples.shape[0], count))
    # Sums of products by element, tap by tap: unlike a matrix product they round alike everywhere.
    for tap in range(width):
        output += padded[:, base + tap] * taps[phase, tap]
    return output.astype(np.float32)


@lru_cache(maxsize=8)
def _filter(step: int, phases: int) -> Tuple[int, np.ndarray]:
    """Return the offset of the first tap, and the taps of each phase.

    Tap t of phase p weighs the sample at `first + t` relative to the sample before the output.
    """
    cutoff = min(1.0, phases / step) * _ROLLOFF
    reach = _reach(step, phases)
    taps = np.zeros((phases, 2 * reach + 1))
    # A cutoff of 0.5 stretches the sinc to twice the taps, and halves each of them.
    for phase in range(phases):
        for tap in range(2 * reach + 1):
            time = (tap - reach - phase / phases) * cutoff
            taps[phase, tap] = cutoff * _weigh(time)
    return -reach, taps


def _weigh(time: float) -> float:
    """Return sinc(time) under a Hann window that ends at the last zero crossing."""
    if abs(time) >= _CROSSINGS:
        return 0.0
    window = math.cos(time * math.pi / _CROSSINGS / 2) ** 2
    if time == 0:
        return window
    return window * math.sin(math.pi * time) / (math.pi * time)


def _read_number(reader: Reader, key: str, most: int) -> int:
    value = reader.get(key, int)
    if not 0 < value <= most:
        raise reader.fault(f"{key} is {value}")
    return value


def _read_choice(reader: Reader, key: str, choices: Tuple[str, ...]) -> str:
    value = reader.get(key, str)
    if value not in choices:
        raise reader.fault(f"{key} is {value!r}")
    return value
