"""Tell whether the cache is still that of this model, by the model's own answers.

The digest of a source covers what it was built from as far as that can be known. A factory can
read more: a database, a service, a value in the forward itself. So the answers to a few samples
are cached under the digest, and a later build asks the model for them again. Their hash is part
of the key of every later stage: where the model answers otherwise than it did, neither its cached
answers nor the graphs, trained weights and ranges that came from the old model are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from edgepack.cache import Cache, Entry, digest
from edgepack.files import sha256
from edgepack.ledger import Ledger
from edgepack.runtime.tensor import Tensor
from edgepack.source.eager import REPEAT_TOLERANCE, difference
from edgepack.source.model import Source
from edgepack.stages.samples import SampleSets

STAGE = "identity"
SAMPLES = 4
"""Samples that a model is known by; they are kept, so that later ones need not be the same."""

_ARRAYS = "answers.npz"


def identify(
    found: Source, inputs: tuple[Tensor, ...], samples: SampleSets, cache: Cache, ledger: Ledger
) -> Source:
    """Return the source with its identity: its digest, and its answers to a few samples.

    Raises:
        SourceError: as `Source.run`.
    """
    described = [tensor.to_json() for tensor in inputs]
    key = cache.key(STAGE, {"source": found.digest, "inputs": described})
    entry = cache.get(STAGE, key)
    if entry is not None:
        changed = _change(found, entry)
        if changed:
            ledger.warn(
                f"the cache holds answers of another model under the same code and weights "
                f"({changed}); nothing of it is used: something that the build does not see, as a "
                "service or a file read in forward, changed what the network computes"
            )
            entry = None
    if entry is None:
        feed = next(iter(samples.evaluation.batches(SAMPLES))).inputs
        entry = _store(feed, found.run(feed), cache, key)
    answers = sha256(entry.folder / _ARRAYS)
    return replace(found, identity=digest({"source": found.digest, "answers": answers}))


def _change(found: Source, entry: Entry) -> str:
    """Say how the model's answers differ from the cached ones; "" where they do not."""
    with np.load(entry.folder / _ARRAYS, allow_pickle=False) as arrays:
        feed = {
            name.removeprefix("input-"): arrays[name]
            for name in arrays
            if name.startswith("input-")
        }
        cached = [arrays[f"answer-{i}"] for i in range(len(arrays) - len(feed))]
    answers = found.run(feed)
    if len(answers) != len(cached):
        return f"{len(cached)} outputs, now {len(answers)}"
    for index, (before, now) in enumerate(zip(cached, answers, strict=True)):
        worst = difference(before, now)
        if worst is None:
            return f"output {index} differs"
        if not worst <= REPEAT_TOLERANCE:
            return f"output {index} differs by {worst:.2g} of its largest value"
    return ""


def _store(
    feed: Mapping[str, np.ndarray], answers: tuple[np.ndarray, ...], cache: Cache, key: str
) -> Entry:
    arrays = {f"input-{name}": array for name, array in feed.items()}
    arrays |= {f"answer-{index}": array for index, array in enumerate(answers)}

    def write(stream: BinaryIO) -> None:
        np.savez(stream, **arrays)  # type: ignore[arg-type]

    return cache.put(STAGE, key, {_ARRAYS: write}, {})
