"""Compare the preprocessing of pictures with that of torchvision and transformers.

    python benchmarks/preprocessing.py pictures FOLDER       # in the development environment
    python benchmarks/preprocessing.py compare FOLDER BUNDLE # where torchvision is installed, too
    python benchmarks/preprocessing.py versions FOLDER PILLOW ...

The first writes JPEGs cut out of photographs of scikit-learn, scikit-image and foolbox. The second
compares arrays and the decisions of a network that takes 224 x 224 pixels. The third compares the
arrays of other releases of Pillow, each unpacked into a folder (`pip install --target`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgepack.runtime.model import load  # noqa: E402
from edgepack.runtime.preprocess.picture import Picture  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "preprocessing.json"
COUNT, SIDE = 400, 224
SIZES = ((640, 480), (480, 640), (320, 240), (300, 300), (257, 500))
# What EfficientNet-Lite0 takes: (pixel - 127) / 128.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
# Margin of a decision that is no near tie.
SURE = 0.05
# Ways to make an array of a picture, by name.
Ways = dict[str, Callable[[Image.Image], np.ndarray]]


def find_photographs() -> Iterator[Image.Image]:
    """Yield the photographs in three packages, largest side at least 200 pixels."""
    folders = {"sklearn": "datasets/images", "skimage": "data", "foolbox": "data"}
    for package, folder in folders.items():
        spec = util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"not installed: {package}")
        for path in sorted((Path(spec.origin).parent / folder).iterdir()):
            if path.suffix in (".jpg", ".png", ".jpeg") and "mask" not in path.name:
                picture = Image.open(path).convert("RGB")
                if max(picture.size) >= 200:
                    yield picture


def write_pictures(folder: Path) -> None:
    """Write COUNT JPEGs of five sizes, each a scaled piece of a photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    photographs = list(find_photographs())
    for number in range(COUNT):
        source = photographs[number % len(photographs)]
        width, height = SIZES[number % len(SIZES)]
        share = generator.uniform(0.6, 1.0)
        scale = share * min(source.width / width, source.height / height)
        box_width, box_height = width * scale, height * scale
        left = generator.uniform(0, source.width - box_width)
        top = generator.uniform(0, source.height - box_height)
        box = (left, top, left + box_width, top + box_height)
        piece = source.resize((width, height), Image.Resampling.LANCZOS, box=box)
        piece.save(folder / f"{number:03}.jpg", quality=int(generator.integers(70, 96)))
    print(f"{COUNT} pictures of {len(photographs)} photographs")


def other_ways(interpolation: str) -> Ways:
    """Return the preprocessing of torchvision and transformers, with the same settings."""
    import torch
    from torchvision import transforms
    from torchvision.transforms import v2
    from transformers import CLIPImageProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    mode = transforms.InterpolationMode(interpolation)

    def on_tensors(*, antialias: bool) -> Any:
        return v2.Compose([
            v2.PILToTensor(), v2.Resize(256, mode, antialias=antialias), v2.CenterCrop(SIDE),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    on_pictures = transforms.Compose([
        transforms.Resize(256, mode), transforms.CenterCrop(SIDE), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    smooth, sharp = on_tensors(antialias=True), on_tensors(antialias=False)
    settings = {
        "size": {"shortest_edge": 256}, "crop_size": SIDE, "image_mean": MEAN, "image_std": STD,
        "resample": Image.Resampling[interpolation.upper()],
    }  # fmt: skip
    pil, fast = CLIPImageProcessorPil(**settings), CLIPImageProcessor(**settings)
    return {
        "torchvision, PIL": lambda picture: on_pictures(picture).numpy(),
        "torchvision, tensors": lambda picture: smooth(picture).numpy(),
        "transformers, PIL": lambda picture: pil(picture, return_tensors="np")["pixel_values"][0],
        "transformers, tensors": lambda picture: fast(picture, return_tensors="np")["pixel_values"][
            0
        ],
        "wrong: no antialiasing": lambda picture: sharp(picture).numpy(),
    }


def wrong_ways(interpolation: str) -> dict[str, Picture]:
    """Return preprocessings that differ in one setting."""
    other = {"bilinear": "bicubic", "bicubic": "bilinear"}[interpolation]
    same = {"resize": 256, "crop": SIDE, "mean": MEAN, "std": STD}
    return {
        f"wrong: {other}": Picture(**same, interpolation=other),
        "wrong: BGR": Picture(**same, interpolation=interpolation, colour="bgr"),
        "wrong: no mean": Picture(resize=256, crop=SIDE, interpolation=interpolation),
    }


def measure_snr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the SNR in dB, at most 999."""
    noise = float(np.mean((actual.astype(np.float64) - expected) ** 2))
    if not noise:
        return 999.0
    return float(10 * np.log10(expected.astype(np.float64).var() / noise))


def compare(folder: Path, bundle: Path) -> None:
    """Compare arrays and decisions, and write the table."""
    warnings.simplefilter("ignore")
    model = load(bundle)
    tables = {}
    for interpolation in ("bilinear", "bicubic"):
        own = Picture(resize=256, crop=SIDE, interpolation=interpolation, mean=MEAN, std=STD)
        down = Picture(**{**own.__dict__, "corner": "down"})
        ways = other_ways(interpolation)
        for name, picture in wrong_ways(interpolation).items():
            ways[name] = lambda image, picture=picture: picture.to_array(image.filename_bytes)
        tables[interpolation] = compare_ways(folder, model, own, down, ways)
    packages = ("torch", "torchvision", "transformers", "pillow", "numpy", "onnxruntime")
    document = {
        "pictures": COUNT,
        "sizes": [f"{width} x {height}" for width, height in SIZES],
        "versions": {name: metadata.version(name) for name in packages},
        "interpolations": tables,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {RESULT.relative_to(ROOT)}")


def compare_ways(folder: Path, model: Any, own: Picture, down: Picture, ways: Ways) -> Any:
    """Return, by way, the share of equal arrays and decisions, and the differences."""
    figures: dict[str, list[tuple[bool, float, float, bool, float]]] = {name: [] for name in ways}
    for path in sorted(folder.glob("*.jpg")):
        data = path.read_bytes()
        # transformers rounds the corner of a crop down.
        arrays = {corner: picture.to_array(data) for corner, picture in
                  (("even", own), ("down", down))}  # fmt: skip
        decisions = {corner: decide(model, array) for corner, array in arrays.items()}
        image = Image.open(path)
        image.filename_bytes = data
        for name, way in ways.items():
            corner = "down" if name.startswith("transformers") else "even"
            expected, actual = arrays[corner], np.asarray(way(image), np.float32)
            levels = float(np.abs(actual - expected).max() * STD[0] * 255)
            best, margin = decisions[corner]
            same = decide(model, actual)[0] == best
            equal = levels < 0.01
            figures[name].append((equal, levels, measure_snr(expected, actual), same, margin))
    table = {}
    for name, rows in figures.items():
        equal, levels, snr, same, margins = map(np.array, zip(*rows, strict=True))
        sure = margins >= SURE
        table[name] = {
            "same_pixels": round(float(np.mean(equal)), 4),
            "largest_difference_levels": round(float(levels.max()), 2),
            "worst_snr_db": round(float(snr.min()), 1),
            "median_snr_db": round(float(np.median(snr)), 1),
            "same_decisions": round(float(np.mean(same)), 4),
            "largest_margin_of_another": round(float(margins[~same].max(initial=0.0)), 4),
            "sure_pictures": int(sure.sum()),
            "same_decisions_of_sure": round(float(np.mean(same[sure])), 4),
        }
        print(f"{name:<26}", table[name])
    return table


def decide(model: Any, array: np.ndarray) -> tuple[int, float]:
    """Return the likeliest class, and by how much its probability exceeds that of the second."""
    (scores,) = model.run({model.inputs[0].name: array[None]}).values()
    weights = np.exp(scores[0] - scores.max())
    second, first = np.sort(weights / weights.sum())[-2:]
    return int(scores.argmax()), float(first - second)


def digest_arrays(folder: Path) -> str:
    """Return a hash of the arrays of all pictures, with four filters."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.jpg")):
        for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
            picture = Picture(resize=256, crop=SIDE, interpolation=interpolation)
            digest.update(picture.to_array(path.read_bytes()).tobytes())
    return digest.hexdigest()


def compare_versions(folder: Path, others: list[str]) -> None:
    """Print whether other releases of Pillow make the same bits."""
    here = digest_arrays(folder)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import PIL; import preprocessing as p; "
        "from pathlib import Path; print(PIL.__version__, p.digest_arrays(Path(sys.argv[3])))"
    )
    for other in others:
        command = [sys.executable, "-c", code, other, str(ROOT / "benchmarks"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        version, digest = done.stdout.split()
        print(version, "the same bits" if digest == here else "different bits")


def main(arguments: list[str]) -> None:
    """Run one of the three commands."""
    command, folder, *rest = arguments
    if command == "pictures":
        write_pictures(Path(folder))
    elif command == "compare":
        compare(Path(folder), Path(rest[0]))
    else:
        compare_versions(Path(folder), rest)


if __name__ == "__main__":
    main(sys.argv[1:])
