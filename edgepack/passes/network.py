"""Helpers for the passes that restructure a torch module. Importing this module needs torch."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgepack.errors import ChainError
from edgepack.listing import join_names
from edgepack.passes.module import ModuleContext
from edgepack.spec.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import nn

# Called after a layer with the layer, its inputs and its output.
ForwardHook = Callable[["nn.Module", tuple[torch.Tensor, ...], torch.Tensor], None]

# A note lists at most this many layer names.
SPELT = 6
# Larger scores mark masked classes; they say nothing about the scale of the other scores.
MASKED = 1e4


def make_arguments(
    context: ModuleContext, feed: Mapping[str, np.ndarray]
) -> tuple[torch.Tensor, ...]:
    """Return the positional arguments of the module for a feed by input name."""
    return tuple(torch.from_numpy(np.array(feed[t.name], order="C")) for t in context.inputs)


def run_network(module: nn.Module, example: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Call a module without gradients and return its outputs as a list.

    The inputs are cloned, since a network may write into them.
    """
    with torch.no_grad():
        answer = module(*[argument.clone() for argument in example])
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


def are_outputs_equal(expected: torch.Tensor, actual: torch.Tensor, tolerance: float) -> bool:
    """Return True if two outputs are equal up to rounding.

    Infinities and NaN must agree exactly. Finite values may differ by `tolerance` times the largest
    magnitude below `MASKED`; larger ones by `tolerance` times their own magnitude.
    """
    if expected.shape != actual.shape:
        return False
    expected, actual = expected.double(), actual.double()
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    if not torch.allclose(expected[~finite], actual[~finite], equal_nan=True):
        return False
    # With scores [2, -1, -1e9] and tolerance 1e-4 the first two may differ by 2e-4. If the mask
    # value -1e9 set the scale, a difference of 1e5 would pass for all of them.
    expected, actual = expected[finite], actual[finite]
    size = expected.abs()
    usual = size < MASKED
    largest = size[usual].max() if bool(usual.any()) else 0.0
    bound = tolerance * torch.where(usual, largest, size)
    return bool(((expected - actual).abs() <= bound).all())


def count_macs(module: nn.Module, example: Sequence[torch.Tensor]) -> dict[str, int]:
    """Count the multiply-accumulates of one call by submodule name; the total is under "".

    Counts matrix products, convolutions and attention, as torch's FLOP counter does.
    """
    # The counter registers hooks on gradients; without gradients there are none to leave behind.
    module = copy.deepcopy(module).requires_grad_(False)
    # torch counts neither its fused inference layers nor fused attention on a CPU: disable both.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run_network(module, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    counts = counter.get_flop_counts()
    top = type(module).__name__
    counts_by_name = {"": counter.get_total_flops() // 2}
    # Names begin with the class of the module, as in "ResNet.layer1.0.conv1"; 2 FLOPs per MAC.
    for name, flops in counts.items():
        if name.startswith(f"{top}."):
            counts_by_name[name[len(top) + 1 :]] = sum(flops.values()) // 2
    return counts_by_name


def is_transposed(module: nn.Module) -> bool:
    """Return True for the Conv1D of Hugging Face's GPT-2: y = x W + b, W stored [in, out]."""
    # Compared by name, since transformers need not be installed.
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def find_shared_weights(module: nn.Module) -> set[int]:
    """Return the ids of the parameters that have several names."""
    names = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    return {key for key, count in names.items() if count > 1}


def select_layers(
    name: str, names: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> set[str]:
    """Return the layer names that the options include and exclude leave to a pass.

    Args:
        name: of the pass.
        names: of all layers that the pass supports, as in `named_modules()`.
        include: `fnmatch` patterns; a name must match one of them. Empty means every name.
        exclude: `fnmatch` patterns; a name must match none of them.

    Raises:
        ChainError: `NAME-layers` for a pattern that matches no layer.
    """
    # A pattern without a match is a typing error more often than intended.
    for pattern in (*include, *exclude):
        if not _match_any(names, [pattern]):
            near = did_you_mean(pattern, names)
            raise ChainError(
                f"{name}-layers",
                f"no layer that {name} supports matches {pattern!r}",
                why=f"{len(names)} layers are supported"
                + (near if near.startswith("; did") else ""),
                hint=f"* matches any text; names are those of named_modules(): "
                f"{', '.join(names[:5])}",
            )

    # Of conv1, conv2 and fc, include "conv*" and exclude "*2" leave conv1.
    selected = _match_any(names, include) if include else set(names)
    return selected - _match_any(names, exclude)


def _match_any(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Return the names that match one of the patterns."""
    matches: set[str] = set()
    for pattern in patterns:
        matches.update(name for name in names if fnmatchcase(name, pattern))
    return matches


@contextmanager
def substitute_submodules(module: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Substitute submodules within the context, and restore them on exit."""
    before = {name: module.get_submodule(name) for name in parts}
    try:
        for name, part in parts.items():
            replace_submodule(module, name, part)
        yield
    finally:
        for name, part in before.items():
            replace_submodule(module, name, part)


def replace_submodule(module: nn.Module, name: str, part: nn.Module) -> None:
    """Replace the submodule of this name."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)


def group_by_reason(reasons: Mapping[str, str]) -> list[str]:
    """Group layers by the reason for which they were skipped, one sentence per reason.

    {"a": "its weights are shared", "b": "its weights are shared"} gives
    ["a, b: its weights are shared"].
    """
    layers: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        layers[reason].append(name or "the network")
    sentences = []
    for reason, names in layers.items():
        sentences.append(f"{join_names(names, SPELT)}: {reason}")
    return sentences
