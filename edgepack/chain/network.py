"""What the passes that cut a torch module ask of it. Only importable where torch is."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgepack.chain.module import Context
from edgepack.errors import ChainError
from edgepack.spec.document import did_you_mean

# Names of layers that a note spells out.
SPELT = 6
# A score this far off is that of a class that is masked, and no measure of the others.
MASKED = 1e4


def arguments(context: Context, feed: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """A feed by input name as the module is called with it."""
    return tuple(torch.from_numpy(np.array(feed[t.name], order="C")) for t in context.inputs)


def ask(module: Any, example: Sequence[Any]) -> list[Any]:
    """The outputs of one call, of a module that returns a tensor or a tuple of them.

    It is given copies: a network may write into its inputs.
    """
    with torch.no_grad():
        answer = module(*[argument.clone() for argument in example])
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two outputs are the same up to rounding.

    Infinities and NaN must be the same. Of the finite values each may differ by that share of the
    largest; masked ones, which would hide all others so, by that share of themselves.
    """
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    if not torch.allclose(one[~finite], other[~finite], equal_nan=True):
        return False
    one, other = one[finite], other[finite]
    size = one.abs()
    usual = size < MASKED
    largest = size[usual].max() if bool(usual.any()) else 0.0
    return bool(((one - other).abs() <= tolerance * torch.where(usual, largest, size)).all())


def count_macs(module: Any, example: Sequence[Any]) -> dict[str, int]:
    """Multiplications with an addition of one call, by name of the part; the whole under "".

    Those of matrix products, convolutions and attention, as torch counts them.
    """
    # The counter hooks on to the gradients of whatever parts are given, parameters too.
    module = copy.deepcopy(module).requires_grad_(False)
    # torch counts neither its fused layers of inference nor its fused attention on a CPU.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            ask(module, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    counts = counter.get_flop_counts()
    top = type(module).__name__
    found = {"": counter.get_total_flops() // 2}
    for name, flops in counts.items():
        if name.startswith(f"{top}."):
            found[name[len(top) + 1 :]] = sum(flops.values()) // 2
    return found


def is_transposed(module: Any) -> bool:
    """Whether it is the Conv1D of Hugging Face's GPT-2: y = x W + b."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


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
