"""What the passes that cut a torch module ask of it. Only importable where torch is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgepack.chain.module import Context
from edgepack.errors import ChainError
from edgepack.spec.document import did_you_mean

# Names of layers that a note spells out.
SPELT = 6


def arguments(context: Context, feed: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """A feed by input name as the module is called with it."""
    return tuple(torch.from_numpy(np.array(feed[t.name], order="C")) for t in context.inputs)


def count_macs(module: Any, example: Sequence[Any]) -> dict[str, int]:
    """Multiplications with an addition of one call, by name of the part; the whole under "".

    Those of matrix products, convolutions and attention, as torch counts them.
    """
    # With gradients: torch's fused layers of inference would not be counted.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(*example)
    counts = counter.get_flop_counts()
    top = type(module).__name__
    found = {"": counter.get_total_flops() // 2}
    for name, flops in counts.items():
        if name.startswith(f"{top}."):
            found[name[len(top) + 1 :]] = sum(flops.values()) // 2
    return found


def shared_weights(module: Any) -> set[int]:
    """The ids of the parameters that have several names."""
    names = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    return {key for key, count in names.items() if count > 1}


def select(
    name: str, names: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> set[str]:
    """The names that a pass may touch, by its options include and exclude.

    Args:
        name: of the pass.
        names: of all layers that it could touch, as in `named_modules()`.
        include: patterns as of `fnmatch`, of which a name must fit one, where there are any.
        exclude: patterns, of which it must fit none.

    Raises:
        ChainError: the pass's name and `-layers`, for a pattern that fits none.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(known, pattern) for known in names):
            near = did_you_mean(pattern, names)
            raise ChainError(
                f"{name}-layers",
                f"no layer that {name} could touch fits {pattern!r}",
                why=f"there are {len(names)} of them" + (near if near.startswith("; did") else ""),
                hint=f"* fits anything; names are as in named_modules(): {', '.join(names[:5])}",
            )

    def fits(known: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(known, pattern) for pattern in patterns)

    return {
        known
        for known in names
        if (not include or fits(known, include)) and not fits(known, exclude)
    }


@contextmanager
def in_place_of(module: Any, parts: Mapping[str, Any]) -> Iterator[None]:
    """Let other modules stand where some of a module's parts do, for a while."""
    before = {name: module.get_submodule(name) for name in parts}
    try:
        for name, part in parts.items():
            put(module, name, part)
        yield
    finally:
        for name, part in before.items():
            put(module, name, part)


def put(module: Any, name: str, part: Any) -> None:
    """Put a module where the one of this name stands."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)


def grouped(left: Mapping[str, str]) -> list[str]:
    """Layers and why each is left, as sentences: the layers of a reason, then the reason."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in left.items():
        names[reason].append(name or "the network")
    return [
        ", ".join(found[:SPELT])
        + (f" and {len(found) - SPELT} more" if len(found) > SPELT else "")
        + f": {reason}"
        for reason, found in names.items()
    ]
