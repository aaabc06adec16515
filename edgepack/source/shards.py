"""List the files of a sharded checkpoint; its index names the file of every tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from edgepack.errors import SourceError
from edgepack.runtime.plain import read_plain

MAX_INDEX = 64 << 20


def list_shards(index: Path) -> tuple[Path, ...]:
    """Return the files that a `*.index.json` names, all of them in its folder.

    The index is {"weight_map": {"conv.weight": "model-00001-of-00002.safetensors", ...}}.

    Raises:
        SourceError: source-corrupt, source-hf-missing-weights.
    """
    try:
        table = json.loads(read_plain(index, MAX_INDEX))["weight_map"]
        names = sorted(set(map(str, table.values())))
        if not names:
            raise ValueError("its weight_map is empty")
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise SourceError(
            "source-corrupt",
            f"{index} cannot be read",
            why=f"{type(error).__name__}: {error}",
            hint="save the weights again with save_pretrained",
        ) from error
    return tuple(_shard(index, name) for name in names)


def by_name(shards: Iterable[Path]) -> list[tuple[str, Path]]:
    """Return each file with its name, for a digest that does not depend on the folder."""
    return [(shard.name, shard) for shard in shards]


def total_bytes(shards: Iterable[Path]) -> int:
    """Return the size of all files together."""
    return sum(shard.stat().st_size for shard in shards)


def _shard(index: Path, name: str) -> Path:
    shard = index.parent / name
    if "/" in name or "\\" in name or not shard.is_file():
        raise SourceError(
            "source-hf-missing-weights",
            f"{index.parent.name or index.name} lacks a part of its weights",
            why=f"its index names {name!r}, which is not a file of the folder",
            hint="copy the whole folder again",
        )
    return shard
