"""Cache the results of stages: models, with their notes and details."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgepack.cache import Cache, Entry
from edgepack.ledger import Model, PassResult, Stage
from edgepack.onnx_tools.writer import serialised

if TYPE_CHECKING:
    from onnx import ModelProto


def run_cached(
    name: str,
    parts: Mapping[str, object],
    stage: Stage,
    cache: Cache,
    compute: Callable[[], PassResult[ModelProto]],
) -> tuple[bytes, Mapping[str, Any]]:
    """Return a stage's model and details from the cache, computing them on a miss."""
    # Notes and details come from the document in both cases, so that a cached build has the same
    # report as the first one.
    entry, cached = fetch_or_compute(name, parts, cache, compute)
    if cached:
        stage.set(status="cached")
    record_document(entry.document, stage)
    details: Mapping[str, Any] = entry.document["details"]
    return read_model(entry), details


def fetch_or_compute(
    name: str,
    parts: Mapping[str, object],
    cache: Cache,
    compute: Callable[[], PassResult[ModelProto]],
) -> tuple[Entry, bool]:
    """Return the cached entry of a stage, computing it on a miss; and True for a hit."""
    key = cache.key(name, parts)
    entry = cache.get(name, key)
    if entry is not None:
        return entry, True
    result = compute()
    model: bytes = serialised(result.model)
    return cache.put(name, key, {"model.onnx": model}, to_document(result)), False


def to_document(result: PassResult[Model]) -> dict[str, object]:
    """Return the cache's document of a result, everything besides its model."""
    return {
        "notes": list(result.notes),
        "details": dict(result.details),
        "changed": result.changed,
    }


def record_document(document: Mapping[str, Any], stage: Stage) -> None:
    """Write a cached document into a stage's record."""
    # A pass that changed nothing is skipped, whether it ran now or in an earlier build.
    if not document["changed"]:
        stage.set(status="skipped")
    stage.note(*document["notes"])
    stage.detail(**document["details"])


def read_model(entry: Entry) -> bytes:
    """Return the model of an entry."""
    return (entry.folder / "model.onnx").read_bytes()
