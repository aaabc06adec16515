"""Models in the cache: what a stage computed of one, with its notes and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgepack.cache import Cache, Entry
from edgepack.ledger import PassResult, Stage


def through_cache(
    name: str,
    parts: Mapping[str, Any],
    stage: Stage,
    cache: Cache,
    compute: Callable[[], PassResult[Any]],
) -> tuple[bytes, Mapping[str, Any]]:
    """A stage's model and details: from the cache, else computed and kept there."""
    entry, cached = kept(name, parts, cache, compute)
    if cached:
        stage.set(status="cached")
    write_down(entry.document, stage)
    details: Mapping[str, Any] = entry.document["details"]
    return read_model(entry), details


def kept(
    name: str, parts: Mapping[str, Any], cache: Cache, compute: Callable[[], PassResult[Any]]
) -> tuple[Entry, bool]:
    """The cache's entry of a graph, computed where there was none; and whether there was one."""
    key = cache.key(name, parts)
    entry = cache.get(name, key)
    if entry is not None:
        return entry, True
    result = compute()
    model: bytes = result.model.SerializeToString(deterministic=True)
    return cache.put(name, key, {"model.onnx": model}, document_of(result)), False


def document_of(result: PassResult[Any]) -> dict[str, Any]:
    """What the cache keeps of a result beside its model."""
    return {
        "notes": list(result.notes),
        "details": dict(result.details),
        "changed": result.changed,
    }


def write_down(document: Mapping[str, Any], stage: Stage) -> None:
    """Write what the cache has of a result into a stage's record."""
    if not document["changed"]:
        stage.set(status="skipped")
    stage.note(*document["notes"])
    stage.detail(**document["details"])


def read_model(entry: Entry) -> bytes:
    """The model of an entry."""
    return (entry.folder / "model.onnx").read_bytes()
