"""Fashion-MNIST for several tests: where it is, and what manifests say of its network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import ROOT

EXAMPLES = ROOT / "examples"
WEIGHTS = EXAMPLES / "weights" / "fashion-resnet.safetensors"
ARCH = f"{EXAMPLES / 'fashion_resnet.py'}:model"
_FOLDER = Path(os.environ.get("EDGEPACK_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))

# How a test's own module of samples begins.
IMPORTS = f"""
import sys

sys.path.insert(0, {str(EXAMPLES)!r})
import fashion_resnet"""
# What a manifest says of the network.
TENSORS = """
[[inputs]]
name = "image"
dtype = "float32"
shape = ["batch", 1, 28, 28]

[[outputs]]
name = "scores"
kind = "scores"
"""


def need_pictures() -> None:
    """Skip the test, or all that need the fixture, where the pictures are not there."""
    if not (_FOLDER / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
