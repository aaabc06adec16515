"""Train a small network on handwritten digits, and write what edgepack needs of it.

    python examples/digits.py

writes digits.onnx, calibration.npz and evaluation.npz into the current folder, and digits.pt, the
weights alone, in about ten seconds.

digits.csv.gz holds 1,797 scanned digits of 8 by 8 pixels, each row 64 grey values from 0 to 16 and
the digit: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
Learning Repository, 1998, CC BY 4.0, in the selection that scikit-learn ships.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

table = np.loadtxt(Path(__file__).with_name("digits.csv.gz"), delimiter=",", dtype=np.float32)
table = np.random.default_rng(0).permutation(table)
images = table[:, :64].reshape(-1, 1, 8, 8) / 16
labels = table[:, 64].astype(np.int64)


def model() -> nn.Module:
    """Return the network, without its trained weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def student() -> nn.Module:
    """Return a smaller network, for a student that learns from the other one."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def train(network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epochs: int = 8) -> None:
    """Train the network."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            loss = F.cross_entropy(network(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """Train on 1,200 digits; keep the other 597 for the evaluation."""
    torch.set_num_threads(1)  # a second thread costs more than it gains on images of 8 x 8
    torch.manual_seed(0)
    network = model()
    train(network, torch.from_numpy(images[:1200]), torch.from_numpy(labels[:1200]))
    network.eval()

    torch.save(network.state_dict(), "digits.pt")
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        "digits.onnx",
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    np.savez("calibration.npz", image=images[:400])
    np.savez("evaluation.npz", image=images[1200:], labels=labels[1200:])


if __name__ == "__main__":
    main()
