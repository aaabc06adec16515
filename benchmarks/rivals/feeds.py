"""Samples of a network as single feeds, at their own lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

MASK = "attention_mask"


def read_feeds(path: Path, limit: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield a feed of one sample each; a masked one without its padding."""
    with np.load(path) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(inputs.values())))
    for i in range(min(limit, count)):
        feed = {name: array[i : i + 1] for name, array in inputs.items()}
        if MASK in feed:
            length = int(feed[MASK].sum())
            feed = {name: np.ascontiguousarray(array[:, :length]) for name, array in feed.items()}
        yield feed
