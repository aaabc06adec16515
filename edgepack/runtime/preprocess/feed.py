"""Feeds of a model from raw samples: paths, bytes and texts."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from ..plain import read_plain

if TYPE_CHECKING:
    from .protocol import Preprocessing


# Largest sample that is read, so that an endless standard input ends.
MAX_BYTES = 1 << 28


def prepare_samples(
    preprocessing: Preprocessing, samples: Sequence[object]
) -> Dict[str, np.ndarray]:
    """Return one feed of several raw samples, along axis 0.

    Raises InputError if a sample cannot be read or used, or if their arrays differ in size.
    """
    feeds: List[Mapping[str, np.ndarray]] = []
    for sample in samples:
        data, name = read_sample(preprocessing, sample)
        feeds.append(preprocessing.prepare(data, name))
    return join_feeds(feeds)


def refuse_pair(preprocessing: Optional[Preprocessing], hint: str) -> None:
    """Raise InputError `text-pair` if the model takes single texts."""
    # Only a `Text` knows: the user's own code may take a pair.
    if not getattr(preprocessing, "pair", True):
        raise InputError(
            "text-pair",
            "the model takes single texts, not pairs",
            why="it was built on samples of one text each",
            hint=hint,
        )


def read_sample(preprocessing: Optional[Preprocessing], sample: object) -> Tuple[bytes, str]:
    """Return the bytes of a raw sample, and its name for messages; "" for none.

    Args:
        preprocessing: decides if a string is a text; None takes it for a path.
        sample: a path, bytes, or a text; for a model of pairs a tuple of two.

    Raises InputError if its file cannot be read, and for a pair if the model takes single texts.
    """
    if isinstance(sample, (bytes, bytearray, memoryview)):
        return bytes(sample), ""
    if preprocessing is not None and preprocessing.takes_text:
        if isinstance(sample, str):
            return sample.encode("utf-8", "surrogatepass"), ""
        if isinstance(sample, tuple):
            refuse_pair(preprocessing, "pass one text")
            return json.dumps(sample, ensure_ascii=False).encode("utf-8", "surrogatepass"), ""
    if not isinstance(sample, (str, os.PathLike)):
        raise InputError(
            "input-type",
            "a sample has the wrong type",
            why=f"it is a {type(sample).__name__}",
            hint="pass the path of a file, its bytes, or an array",
        )
    path = os.fspath(sample)
    try:
        return read_plain(path, MAX_BYTES), path
    except OSError as error:
        raise InputError(
            "samples-unreadable",
            f"the sample cannot be read: {path}",
            why=error.strerror or str(error),
            hint="check the path: it must name a file that you may read",
        ) from error


def join_feeds(feeds: Sequence[Mapping[str, np.ndarray]]) -> Dict[str, np.ndarray]:
    """Join feeds of one sample each along the batch axis.

    Raises InputError if their arrays differ in size.
    """
    joined = {}
    for name in feeds[0]:
        arrays = [feed[name] for feed in feeds]
        sizes = sorted({array.shape[1:] for array in arrays})
        if len(sizes) > 1:
            raise InputError(
                "input-ragged",
                "samples of different sizes cannot share a batch",
                why=f"{name} has the sizes {', '.join(map(str, sizes))}",
                hint="pass one sample at a time",
            )
        joined[name] = np.concatenate(arrays)
    return joined
