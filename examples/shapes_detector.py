"""A small one-stage detector of drawn shapes, whose class scores are lost in careless int8.

    edgepack build --target cpu-fbgemm --manifest manifests/shapes-detector.toml \
        examples/weights/shapes-detector.safetensors

Pictures of 64 x 64 pixels, thumbnails of a camera's 512 x 512, show one to three discs, squares and
triangles. The network has 40,000 parameters. As in the first YOLO one linear layer predicts, for
each of 64 cells, a box in pixels of the camera and a score of each class. Distances of hundreds of
pixels and scores from 0 to 1 share the int8 scale of that layer, which leaves two or three levels
to the scores, while the SNR of the whole output is that of the boxes, and stays high.

Run as a program it trains the weights anew, which takes about two minutes on two cores:

    python examples/shapes_detector.py examples/weights/shapes-detector.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SIZE, STRIDE, MOST = 64, 8, 3
# Pixels of the camera for each of the picture.
ZOOM = 8
CLASSES = ("disc", "square", "triangle")
# Seeds of the pictures of each set, so that no picture is in two of them.
TRAINING, CALIBRATION, EVALUATION = 1, 2, 3
STEPS, BATCH = 1000, 32


def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures float32 [count, 3, 64, 64] from 0 to 1, with their boxes.

    Boxes are float32 [count, 3, 5]: class, x1, y1, x2, y2 in pixels; rows of class -1 pad those of
    pictures with fewer than three shapes.
    """
    generator = np.random.default_rng(seed)
    pictures = np.empty((count, 3, SIZE, SIZE), np.float32)
    boxes = np.full((count, MOST, 5), -1, np.float32)
    for index in range(count):
        base, slope = generator.uniform(0, 1, (2, 3, 1, 1))
        ramp = np.linspace(-0.3, 0.3, SIZE)[None, None, :]
        picture = np.broadcast_to(base + (slope - 0.5) * ramp, (3, SIZE, SIZE)).copy()
        for row in range(generator.integers(1, MOST + 1)):
            kind, box, mask = _draw_shape(generator)
            # A colour that stands out from the background.
            colour = (base + generator.uniform(0.25, 0.75, (3, 1, 1))) % 1.0
            picture = np.where(mask, colour, picture)
            boxes[index, row] = (kind, *box)
        noise = generator.normal(0, 0.04, picture.shape)
        pictures[index] = np.clip(picture + noise, 0, 1)
    return pictures, boxes


def _draw_shape(generator: np.random.Generator) -> tuple[int, tuple[float, ...], np.ndarray]:
    """Return the class, the box and the pixels of one random shape."""
    kind = int(generator.integers(len(CLASSES)))
    side = generator.uniform(14, 36)
    left, top = generator.uniform(1, SIZE - 1 - side, 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    across, down = (x - left) / side, (y - top) / side
    inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
    if CLASSES[kind] == "disc":
        inside = (across - 0.5) ** 2 + (down - 0.5) ** 2 <= 0.25
    elif CLASSES[kind] == "triangle":
        inside &= np.abs(across - 0.5) <= down / 2
    return kind, (left, top, left + side, top + side), inside


class ShapesDetector(nn.Module):
    """Convolutions of stride 8 in total; each cell predicts a box and three scores.

    Args:
        zoom: pixels of the predicted boxes for each of the picture.
    """

    def __init__(self, zoom: int = ZOOM) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 16, 2), (16, 32, 2), (32, 48, 2), (48, 48, 1)):
            layers += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(48, 4 + len(CLASSES), 1)
        y, x = torch.meshgrid(*[torch.arange(SIZE // STRIDE) + 0.5] * 2, indexing="ij")
        centres = zoom * STRIDE * torch.stack((x, y)).reshape(1, 2, -1)
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return predictions [batch, 7, 64]: x1, y1, x2, y2 in pixels, and the scores."""
        cells = self.head(self.body(image)).flatten(2)
        # Distances of the four sides from the centre of the cell.
        low, high = self.centres - cells[:, :2], self.centres + cells[:, 2:4]
        return torch.cat((low, high, cells[:, 4:]), 1)


def model() -> ShapesDetector:
    """Return an untrained detector."""
    return ShapesDetector()


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """Yield 256 pictures without boxes."""
    for picture in draw(CALIBRATION, 256)[0]:
        yield {"image": picture}


def evaluation() -> Iterator[dict[str, np.ndarray]]:
    """Yield 400 pictures with their boxes."""
    for picture, boxes in zip(*draw(EVALUATION, 400), strict=True):
        yield {"image": picture, "label": boxes}


def train(path: str) -> None:
    """Train the detector and write its weights."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = ShapesDetector(zoom=1)
    with torch.no_grad():
        # Boxes of 24 pixels to start with: an IoU of 0 would teach nothing.
        network.head.bias[:4] = 12.0
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, STEPS)
    pictures, boxes = map(torch.from_numpy, draw(TRAINING, 8_000))
    for step in range(STEPS):
        chosen = torch.randint(len(pictures), (BATCH,))
        value = _loss(network(pictures[chosen]), boxes[chosen], network.centres)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {value.item():.3f}", flush=True)
    with torch.no_grad():
        network.head.weight[:4] *= ZOOM
        network.head.bias[:4] *= ZOOM
    save_file(network.state_dict(), path)


def _loss(predicted: torch.Tensor, boxes: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the squared error of the scores, and the IoU loss of the boxes."""
    kinds, corners = boxes[..., 0], boxes[..., 1:]
    middles = (corners[..., :2] + corners[..., 2:]) / 2
    # Cells whose centre is near that of a shape are to find it: [batch, shapes, cells].
    near = (middles[..., None] - centres[:, None]).abs().amax(2) < 0.75 * STRIDE
    near &= (kinds >= 0)[..., None]
    distances = (middles[..., None] - centres[:, None]).square().sum(2)
    nearest = torch.where(near, distances, torch.inf).argmin(1)
    found = near.any(1)
    truth = torch.gather(corners, 1, nearest[..., None].expand(-1, -1, 4)).transpose(1, 2)
    kind = torch.gather(kinds, 1, nearest).long().clamp(min=0)
    wanted = functional.one_hot(kind, len(CLASSES)).transpose(1, 2) * found[:, None]
    # Squared errors; cells without a shape are many, and weigh less.
    weight = torch.where(found, 4.0, 1.0)[:, None]
    scores = (weight * (predicted[:, 4:] - wanted) ** 2).sum() / found.sum()
    low = torch.maximum(predicted[:, :2], truth[:, :2])
    high = torch.minimum(predicted[:, 2:4], truth[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (predicted[:, 2:4] - predicted[:, :2]).prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1)
    overlap = shared / (areas - shared)
    return scores + 2 * (1 - overlap)[found].mean()


if __name__ == "__main__":
    train(sys.argv[1])
