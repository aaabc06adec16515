"""A ResNet for Fashion-MNIST: the network, its samples, and the command that trained it.

    python examples/fashion_resnet.py train --output examples/weights/fashion-resnet.safetensors
    python examples/fashion_resnet.py score --weights examples/weights/fashion-resnet.safetensors

The large teacher of benchmarks/chain.py is the same network, wider, its weights kept in half:

    python examples/fashion_resnet.py train --width 64 --blocks 2 --epochs 20 --bfloat16 --half
        --output examples/weights/fashion-teacher.safetensors

The network is the CIFAR ResNet of He et al., "Deep Residual Learning for Image Recognition"
(2015), section 4.2, with a stem of stride 2: at 28x28 pixels that costs hardly any accuracy and
a quarter of the time. The pictures are Debian's package dataset-fashion-mnist (Xiao et al.,
2017, MIT licence), read where it installs them or in $EDGEPACK_FASHION_MNIST.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgepack.errors import DataError, EdgepackError

FOLDER_VARIABLE = "EDGEPACK_FASHION_MNIST"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
# Of the 60,000 training pictures, on pixels scaled to 0..1.
MEAN, STD = 0.2860, 0.3530
CLASSES = 10
CALIBRATION_SAMPLES = 500
CHUNK = 1000


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is a 1x1 one where shapes differ."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class FashionResNet(nn.Module):
    """Pictures [batch, 1, 28, 28], standardised, to class scores [batch, 10]."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        channels_in = width
        for stage in range(3):
            channels = width << stage
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                stages.append(Block(channels_in, channels, stride))
                channels_in = channels
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels_in, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(image)).mean(dim=(2, 3))
        scores: torch.Tensor = self.classifier(features)
        return scores


def model(width: int = 16, blocks: int = 3) -> FashionResNet:
    """The untrained network: 6 * `blocks` + 2 layers, `width` channels in its first stage."""
    return FashionResNet(width, blocks)


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped idx file of unsigned bytes.

    The format is four bytes (0, 0, type, rank), the dimensions as big-endian 32-bit integers,
    then the values: http://yann.lecun.com/exdb/mnist/.

    Raises:
        DataError: `idx-damaged` where the file is not that.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"it cannot be unpacked: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise _damaged(path, f"it starts with {data[:4].hex(' ')}, not with 00 00 08")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise _damaged(path, f"its header of {start} bytes is cut off at {len(data)}")
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4"))
    if len(data) - start != math.prod(shape):
        raise _damaged(path, f"shape {shape}, but {len(data) - start} values")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [count, 28, 28] and labels uint8 [count] of "train" or "test".

    Raises:
        DataError: `dataset-missing` where the files are not there, `idx-damaged` where they
            are not what they should be.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEBIAN_FOLDER)
    paths = [folder / name for name in FILES[split]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            "dataset-missing",
            "Fashion-MNIST cannot be read",
            why=f"{folder} has no {' and no '.join(missing)}",
            hint=f"apt-get install dataset-fashion-mnist, or set {FOLDER_VARIABLE} to its folder",
        )
    images, labels = (read_idx(path) for path in paths)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise _damaged(paths[0], f"pictures {images.shape} and labels {labels.shape} do not fit")
    return images, labels


def standardise(images: np.ndarray) -> np.ndarray:
    """uint8 [..., 28, 28] to the network's input, float32 [..., 1, 28, 28]."""
    scaled = (images.astype(np.float32) / 255 - MEAN) / STD
    return np.expand_dims(scaled.astype(np.float32), -3)


def calibration() -> Iterator[dict[str, Any]]:
    """500 training pictures, spread evenly over the set; their labels stay out."""
    images, _ = pictures("train")
    for image in images[:: len(images) // CALIBRATION_SAMPLES]:
        yield {"image": standardise(image)}


def evaluation() -> Iterator[dict[str, Any]]:
    """All 10,000 test pictures with their labels."""
    for image, label in zip(*pictures("test"), strict=True):
        yield {"image": standardise(image), "label": int(label)}


def training() -> Iterator[dict[str, Any]]:
    """All 60,000 training pictures with their labels, for passes that train."""
    images, labels = pictures("train")
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        yield {"image": standardise(images[part]), "label": labels[part].astype(np.int64)}


def top1(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of uint8 pictures [count, 28, 28] whose best score is their label's, 0..1."""
    network.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), 500):
            scores = network(torch.from_numpy(standardise(images[start : start + 500])))
            right += int((scores.argmax(1).numpy() == labels[start : start + 500]).sum())
    return right / len(images)


def augment(images: torch.Tensor, generator: torch.Generator, shift: int = 2) -> torch.Tensor:
    """Each picture of [batch, 1, 28, 28] mirrored by chance and moved by up to `shift` pixels."""
    count, side = images.shape[0], images.shape[-1]
    mirror = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirror, images.flip(-1), images)
    # Black is what surrounds a garment: the padding is a black pixel, standardised.
    padded = F.pad(images, (shift,) * 4, value=-MEAN / STD)[:, 0]
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(side)
    index = torch.arange(count)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(width: int, blocks: int, epochs: int, seed: int, bfloat16: bool = False) -> FashionResNet:
    """Train on the 60,000 training pictures; the test pictures are not looked at.

    SGD with Nesterov momentum on a one-cycle schedule (Smith and Topin, 2017), batch 128. The
    same seed, torch and number of threads give the same weights. `bfloat16` computes layers in
    that, twice as fast on a CPU that has it; weights and their updates stay float32.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)
    images, labels = pictures("train")
    inputs = torch.from_numpy(standardise(images))
    answers = torch.from_numpy(labels.astype(np.int64))
    # A tenth faster on a CPU than channels first; saved weights do not depend on it.
    network = model(width, blocks)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = 128
    steps = len(images) // batch
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, epochs=epochs, steps_per_epoch=steps
    )
    for epoch in range(1, epochs + 1):
        network.train()
        start, total, right = time.perf_counter(), 0.0, 0
        order = torch.randperm(len(images), generator=generator)
        for picked in order[: steps * batch].view(steps, batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                scores = network(augment(inputs[picked], generator))
            loss = F.cross_entropy(scores.float(), answers[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            right += int((scores.argmax(1) == answers[picked]).sum())
        _log(
            f"epoch {epoch}/{epochs}: loss {total / steps:.4f}, training top-1 "
            f"{100 * right / (steps * batch):.2f} %, {time.perf_counter() - start:.1f} s"
        )
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval()


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "idx-damaged",
        f"{path} is not an idx file of Fashion-MNIST",
        why=why,
        hint="apt-get install --reinstall dataset-fashion-mnist",
    )


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The commands `train` and `score`."""
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train, and write the weights")
    trainer.add_argument("--output", type=Path, required=True, help="the .safetensors to write")
    trainer.add_argument("--epochs", type=int, default=15)
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--bfloat16", action="store_true", help="compute the layers in bfloat16")
    trainer.add_argument("--half", action="store_true", help="store the weights in half")
    scorer = commands.add_parser("score", help="top-1 of weights on the test pictures")
    scorer.add_argument("--weights", type=Path, required=True, help="the .safetensors to read")
    for command in (trainer, scorer):
        command.add_argument("--width", type=int, default=16)
        command.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    try:
        if options.command == "train":
            network = train(
                options.width, options.blocks, options.epochs, options.seed, options.bfloat16
            )
            if options.half:
                network.half()
            options.output.parent.mkdir(parents=True, exist_ok=True)
            save_file(network.state_dict(), options.output, metadata={"format": "pt"})
            # What is scored is what was stored.
            network.float()
        else:
            network = model(options.width, options.blocks)
            network.load_state_dict(load_file(options.weights))
        _log(f"test top-1 {100 * top1(network, *pictures('test')):.2f} %")
    except EdgepackError as error:
        _log(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
