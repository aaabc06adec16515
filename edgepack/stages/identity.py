"""Detect by the model's answers that the cache belongs to another model.

The digest of a source covers its files, code and configuration. A factory can read more: a
database, a service, a value in the forward itself. So the answers to a few samples are cached
under the digest, and a later build computes them again. Their hash is part of the key of every
later stage: if the answers change, none of the old model's cached answers, graphs, trained
weights and ranges are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from edgepack.cache import Cache, Entry, digest
from edgepack.context import Context, SampleSets
from edgepack.context.graph import describe_tensors
from edgepack.files import sha256
from edgepack.runtime.tensor import Tensor
from edgepack.source.eager import REPEAT_TOLERANCE, difference
from edgepack.source.model import Source

STAGE = "identity"
SAMPLES = 4
"""Number of samples that identify a model; the cache holds them for later builds."""

_ARRAYS = "answers.npz"


def identify(
    context: Context, source: Source, inputs: tuple[Tensor, ...], samples: SampleSets
) -> Source:
    """Return the source with its identity: its digest, and its answers to a few samples.

    Raises:
        SourceError: as `Source.run`.
    """
    cache = context.cache
    described = describe_tensors(inputs)
    key = cache.key(STAGE, {"source": source.digest, "inputs": described})
    entry = cache.get(STAGE, key)
    # An entry of another model is replaced, as if there had been none.
    # The digest of a model that was not loaded covers everything, so its answers are not asked.
    if entry is not None and source.deferred is None:
        changed = _describe_change(source, entry)
        if changed:
            context.ledger.warn(
                f"the cache holds answers of another model under the same code and weights "
                f"({changed}), and is not used: something outside the digest, such as a service "
                "or a file read in forward, changed the network's answers"
            )
            entry = None
    if entry is None:
        feed = next(iter(samples.evaluation.batches(SAMPLES))).inputs
        entry = _store_answers(feed, source.run(feed), cache, key)
    answers = sha256(entry.folder / _ARRAYS)
    return replace(source, identity=digest({"source": source.digest, "answers": answers}))


def _describe_change(source: Source, entry: Entry) -> str:
    """Describe the difference between the model's answers and the cached ones; "" for none."""
    with np.load(entry.folder / _ARRAYS, allow_pickle=False) as arrays:
        feed = {}
        for name in arrays:
            if name.startswith("input-"):
                feed[name.removeprefix("input-")] = arrays[name]
        cached: list[np.ndarray] = []
        while f"answer-{len(cached)}" in arrays:
            cached.append(arrays[f"answer-{len(cached)}"])
    answers = source.run(feed)
    if len(answers) != len(cached):
        return f"{len(cached)} outputs, now {len(answers)}"
    for index, (before, now) in enumerate(zip(cached, answers, strict=True)):
        worst = difference(before, now)
        if worst is None:
            return f"output {index} differs"
        # Not `>`: a difference of NaN is a change, too.
        if not worst <= REPEAT_TOLERANCE:
            return f"output {index} differs by {worst:.2g} of its largest value"
    return ""


def _store_answers(
    feed: Mapping[str, np.ndarray], answers: tuple[np.ndarray, ...], cache: Cache, key: str
) -> Entry:
    arrays = {f"input-{name}": array for name, array in feed.items()}
    for index, array in enumerate(answers):
        arrays[f"answer-{index}"] = array

    def write(stream: BinaryIO) -> None:
        np.savez(stream, **arrays)  # type: ignore[arg-type]

    return cache.put(STAGE, key, {_ARRAYS: write}, {})
