"""Match the names in a state dict to a network's, and find the prefix that a wrapper added.

A file from `nn.DataParallel` has "module.conv.weight" for the network's "conv.weight". A prefix
fits if the file has every tensor of the network under it, in the same shape, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.spec.suggestions import nearest

if TYPE_CHECKING:
    import torch

# The prefixes of torch.compile, DataParallel, AveragedModel, DeepSpeed and Lightning.
_COMMON = frozenset({"_orig_mod", "module", "_forward_module", "model", "net", "network"})

# Wrappers that also occur inside a name: torch.compile, FSDP and checkpointing of one part.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# Names of the older and the newer `weight_norm`; the groups are prefix, weight and part.
_NORM = re.compile(r"(.*\.|)(\w+)_([gv])")
_ORIGINAL = re.compile(r"(.*\.|)parametrizations\.(\w+)\.original1")

# Counters that no answer depends on: torch's AveragedModel, and the profiler thop.
_COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
_TRACKED = "num_batches_tracked"


@dataclass(frozen=True)
class Match:
    """State dict under a network's names.

    Attributes:
        complete: True if it fills the network.
        prefix: prefix removed from every name.
        wrappers: steps removed inside names, such as "_orig_mod".
        tensors: tensors under the network's names.
        left: unused names.
        counters: those of them that no answer depends on.
        shared: number of names in common; the fault of the best match is reported.
        choices: prefixes that fit, but must be named by the user.
    """

    complete: bool
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    counters: frozenset[str] = frozenset()
    shared: int = 0
    choices: tuple[str, ...] = ()


def match_names(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    network: Mapping[str, torch.Tensor],
    strip_prefix: str = "",
) -> Match:
    """Find the prefix by which a state dict fills a network.

    Args:
        path: the file, for errors.
        tensors: the state dict.
        network: the network's state dict, with its parameters as they are.
        strip_prefix: remove this prefix first, and leave every other name.

    Raises:
        SourceError: source-strip-prefix if no name starts with it.
    """
    # A network with conv.weight and fc.weight, and a file with module.conv.weight,
    # module.fc.weight and step:
    #     _prefixes    "module.", before the longest name, conv.weight
    #     _fits        under "module." the file has both tensors, in the network's shapes
    #     Match        prefix "module.", left ("step",)
    plain, wrappers = _unwrap(tensors, network)
    plain = _parametrize(plain, network)
    unused: list[str] = []
    if strip_prefix:
        plain, unused = _strip(path, plain, strip_prefix)
    # A file with "backbone." before every name fits, but the prefix may name a part of a larger
    # network, so only the prefixes of known wrappers are removed without the user's word.
    fitting = [prefix for prefix in _prefixes(plain, network) if _fits(plain, network, prefix)]
    if len(fitting) != 1 or not _is_common(fitting[0]):
        shared = _count_shared(plain, network)
        choices = tuple(strip_prefix + prefix for prefix in fitting)
        return Match(False, strip_prefix, (), plain, tuple(unused), shared=shared, choices=choices)
    (prefix,) = fitting
    inside, outside = _split(plain, prefix)
    unused += outside
    matched = {}
    for name, value in inside.items():
        if name in network:
            matched[name] = value
        else:
            unused.append(prefix + name)
    counters = frozenset(filter(_is_counter, unused))
    return Match(True, strip_prefix + prefix, wrappers, matched, tuple(unused), counters)


def _split(
    tensors: Mapping[str, torch.Tensor], prefix: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors under a prefix, without it in their names, and the other names.

    With the prefix "module.", {"module.weight": w, "step": s} gives {"weight": w} and ["step"].
    """
    inside, outside = {}, []
    for name, value in tensors.items():
        if name.startswith(prefix):
            inside[name[len(prefix) :]] = value
        else:
            outside.append(name)
    return inside, outside


def _count_shared(tensors: Mapping[str, torch.Tensor], network: Mapping[str, torch.Tensor]) -> int:
    """Count the tensors whose names end with one of the network's, as "net.conv.weight" does."""
    count = 0
    for name in tensors:
        # "net.conv.weight", "conv.weight" and "weight" are looked up: comparing every name with
        # every name of the network would take seconds for some thousand tensors.
        suffix = name
        while suffix and suffix not in network:
            suffix = suffix.partition(".")[2]
        count += suffix in network
    return count


def _unwrap(
    tensors: Mapping[str, torch.Tensor], network: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Remove wrappers inside names, if the network has none.

    "encoder._orig_mod.conv.weight" becomes "encoder.conv.weight".
    """
    removable = set(_WRAPPERS)
    for name in network:
        removable.difference_update(name.split("."))
    renamed = {}
    removed: set[str] = set()
    for name, value in tensors.items():
        # The first step is never removed here: it is a prefix, which `_prefixes` looks for.
        first, *steps = name.split(".")
        removed.update(removable.intersection(steps))
        inner = [step for step in steps if step not in removable]
        renamed[".".join([first, *inner])] = value
    # "a._orig_mod.w" and "a.w" would become one name, so nothing is removed.
    if len(renamed) < len(tensors):
        return dict(tensors), ()
    return renamed, tuple(sorted(removed))


def _parametrize(
    tensors: dict[str, torch.Tensor], network: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename the tensors of the older `weight_norm`, if the network has the newer one.

    "conv.weight_g" becomes "conv.parametrizations.weight.original0", as in torch itself.
    """
    # The attributes that the network normalizes: "weight" in most layers, "weight_hh_l0" in LSTMs.
    expected = set()
    for name in network:
        match = _ORIGINAL.fullmatch(name)
        if match:
            expected.add(match[2])
    renamed = {}
    for name, value in tensors.items():
        match = _NORM.fullmatch(name)
        if match and match[2] in expected:
            name = f"{match[1]}parametrizations.{match[2]}.original{'gv'.index(match[3])}"
        renamed[name] = value
    return renamed


def _strip(
    path: Path, tensors: Mapping[str, torch.Tensor], prefix: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Split a state dict by the prefix that the user named, as `_split` does.

    Raises:
        SourceError: source-strip-prefix.
    """
    stripped, others = _split(tensors, prefix)
    if stripped and not any(name.startswith(".") for name in stripped):
        return stripped, others
    steps: dict[str, None] = {}
    for name in tensors:
        first, dot, _ = name.partition(".")
        if dot:
            steps[f"{first}."] = None
    # "model" strips "model.conv" to ".conv": the dot is missing.
    near = f"{prefix}." if stripped else nearest(prefix, steps)
    hint = "name one of these with --strip-prefix"
    if near:
        hint = f"--strip-prefix {near}"
    shown = list(steps)[:6] or list(tensors)[:3]
    raise SourceError(
        "source-strip-prefix",
        f"no weights of {path.name} have the prefix {prefix!r}",
        why=f"their names start with: {', '.join(shown)}",
        hint=hint,
    )


def _prefixes(
    tensors: Mapping[str, torch.Tensor], network: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return every prefix that the network's longest name has in the file.

    The names "net.conv.weight" and "ema.conv.weight" give ["net.", "ema."] for a network whose
    longest name is "conv.weight".
    """
    names = [name for name in network if not name.endswith(_TRACKED)] or list(network)
    if not names:
        return [""]
    longest = max(names, key=len)
    # The longest name has the fewest chance matches. A tied tensor may be saved under any of its
    # names, so "decoder.weight" counts as well as "embedding.weight".
    aliases = [name for name in network if network[name] is network[longest]]
    prefixes: dict[str, None] = {}
    for name in tensors:
        for alias in aliases:
            if f".{name}".endswith(f".{alias}"):
                prefixes[name.removesuffix(alias)] = None
    return list(prefixes)


def _fits(
    tensors: Mapping[str, torch.Tensor], network: Mapping[str, torch.Tensor], prefix: str
) -> bool:
    """Return True if the tensors under a prefix fill the network, with none left over."""
    # Tensors are counted by identity: a tied one is filled under any of its names.
    needed, filled = set(), set()
    for name, value in network.items():
        if name.endswith(_TRACKED):
            continue
        needed.add(id(value))
        if prefix + name in tensors:
            if differ(value, tensors[prefix + name]):
                return False
            filled.add(id(value))
    if needed != filled:
        return False
    inside, _ = _split(tensors, prefix)
    return all(map(_is_counter, inside.keys() - network.keys()))


def _is_common(prefix: str) -> bool:
    # "module.model." is ["module", "model", ""], and "" is [""].
    return _COMMON.issuperset(prefix.split(".")[:-1])


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def explain_mismatch(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    network: Mapping[str, torch.Tensor],
    match: Match,
) -> SourceError:
    """Return the error for a state dict that does not fill the network."""
    if len(match.choices) > 1:
        return SourceError(
            "source-weights-ambiguous",
            f"the weights of {path.name} fill the network under {len(match.choices)} prefixes",
            why="they are " + " and ".join(map(repr, match.choices)),
            hint=" or ".join(f"--strip-prefix {prefix}" for prefix in match.choices),
        )
    if match.choices:
        return SourceError(
            "source-weights-mismatch",
            f"the weights of {path.name} fill the network only under another prefix",
            why=f"the file has every name of the network with the prefix {match.choices[0]!r}",
            hint=f"--strip-prefix {match.choices[0]}",
        )
    return mismatch(path, network, match.tensors or tensors)


def mismatch(
    path: Path, network: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> SourceError:
    """Return the error that lists missing and unexpected names, and other shapes."""
    missing, shapes = [], []
    for name, value in network.items():
        if name not in state:
            missing.append(name)
        elif differ(value, state[name]):
            shape, expected = list(state[name].shape), list(value.shape)
            shapes.append(f"{name} is {shape}, the network's {expected}")
    unexpected = [name for name in state if name not in network]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_few(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} that the network does not have: {_few(unexpected)}")
    if shapes:
        parts.append(f"{len(shapes)} of another shape: {_few(shapes, '; ')}")
    return SourceError(
        "source-weights-mismatch",
        f"the weights of {path.name} do not fit the network",
        why="\n".join(parts),
        hint=_meant(missing, unexpected) or "check --arch and --arch-arg: widths, depths, classes",
    )


def differ(network: torch.Tensor, value: object) -> bool:
    """Return True if a tensor's shape is not the network's."""
    return hasattr(value, "shape") and tuple(value.shape) != tuple(getattr(network, "shape", ()))


def _few(names: list[str], separator: str = ", ") -> str:
    return separator.join(names[:4]) + (f"{separator}..." if len(names) > 4 else "")


def _meant(missing: list[str], unexpected: list[str]) -> str:
    for name in missing:
        near = nearest(name, unexpected, likeness=0.7)
        if near:
            return f"the network's {name} may be the file's {near}: did you mean the same?"
    return ""
