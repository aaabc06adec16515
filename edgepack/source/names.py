"""The names in a state dict held against a network's: which prefix a wrapper has put before them.

A file from `nn.DataParallel` has "module.conv.weight" where the network has "conv.weight". A
prefix fits if every tensor of the network is in the file under it, in the same shape, and nothing
under it is left over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError
from edgepack.spec.document import nearest

# The prefixes of torch.compile, DataParallel, AveragedModel, DeepSpeed and Lightning.
_COMMON = frozenset({"_orig_mod", "module", "_forward_module", "model", "net", "network"})

# Wrappers that also stand inside a name: torch.compile, FSDP and checkpointing of one part.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# Names of the older and the newer `weight_norm`: what precedes, the weight, which part of it.
_NORM = re.compile(r"(.*\.|)(\w+)_([gv])")
_ORIGINAL = re.compile(r"(.*\.|)parametrizations\.(\w+)\.original1")

# Counters that no answer depends on: torch's AveragedModel, and the profiler thop.
_COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
_TRACKED = "num_batches_tracked"


@dataclass(frozen=True)
class Match:
    """A state dict under a network's names.

    Attributes:
        complete: whether the network can be filled.
        prefix: what was removed from the front of every name.
        wrappers: steps that were removed inside names, such as "_orig_mod".
        tensors: tensors under the network's names.
        left: names that are not used.
        counters: those of them that no answer depends on.
        shared: number of names in common, to choose whose fault is reported.
        choices: prefixes that fit and are not removed on their own.
    """

    complete: bool
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    tensors: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    counters: frozenset[str] = frozenset()
    shared: int = 0
    choices: tuple[str, ...] = ()


def match_names(
    path: Path, tensors: Mapping[str, Any], own: Mapping[str, Any], strip_prefix: str = ""
) -> Match:
    """Find the prefix under which a state dict fills a network.

    Args:
        path: the file, for errors.
        tensors: the state dict.
        own: the network's state dict, with its parameters as they are.
        strip_prefix: remove this prefix first, and leave every other name.

    Raises:
        SourceError: source-strip-prefix where no name starts with it.
    """
    plain, wrappers = _unwrap(tensors, own)
    plain = _parametrize(plain, own)
    rest: list[str] = []
    if strip_prefix:
        rest = [name for name in plain if not name.startswith(strip_prefix)]
        plain = _strip(path, plain, strip_prefix)
    fitting = [prefix for prefix in _prefixes(plain, own) if _fits(plain, own, prefix)]
    usable = [prefix for prefix in fitting if _is_common(prefix)]
    if len(fitting) != 1 or not usable:
        shared = sum(any(f".{name}".endswith(f".{n}") for n in own) for name in plain)
        choices = tuple(strip_prefix + prefix for prefix in fitting)
        return Match(False, strip_prefix, (), plain, tuple(rest), shared=shared, choices=choices)
    (prefix,) = usable
    inside = {
        name[len(prefix) :]: value for name, value in plain.items() if name.startswith(prefix)
    }
    taken = {name: value for name, value in inside.items() if name in own}
    rest += [name for name in plain if not name.startswith(prefix)]
    rest += [prefix + name for name in inside if name not in own]
    counters = frozenset(name for name in rest if _is_counter(name))
    return Match(True, strip_prefix + prefix, wrappers, taken, tuple(rest), counters)


def _unwrap(
    tensors: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Remove the wrappers of single parts, where the network has none.

    "encoder._orig_mod.conv.weight" becomes "encoder.conv.weight".
    """
    removable = _WRAPPERS - {step for name in own for step in name.split(".")}
    renamed = {}
    for name, value in tensors.items():
        first, *rest = name.split(".")
        renamed[".".join([first, *(step for step in rest if step not in removable)])] = value
    if len(renamed) < len(tensors):
        return dict(tensors), ()
    inside = {step for name in tensors for step in name.split(".")[1:]}
    return renamed, tuple(sorted(inside & removable))


def _parametrize(tensors: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Rename what the older `weight_norm` saved, where the network has the newer one.

    "conv.weight_g" becomes "conv.parametrizations.weight.original0", as in torch itself.
    """
    expected = {match[2] for match in map(_ORIGINAL.fullmatch, own) if match}
    renamed = {}
    for name, value in tensors.items():
        match = _NORM.fullmatch(name)
        if match and match[2] in expected:
            name = f"{match[1]}parametrizations.{match[2]}.original{'gv'.index(match[3])}"
        renamed[name] = value
    return renamed


def _strip(path: Path, tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    stripped = {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)}
    if stripped and not any(name.startswith(".") for name in stripped):
        return stripped
    steps = list(dict.fromkeys(name.partition(".")[0] + "." for name in tensors if "." in name))
    near = f"{prefix}." if stripped else nearest(prefix, steps)
    raise SourceError(
        "source-strip-prefix",
        f"no weights of {path.name} have the prefix {prefix!r}",
        why=f"their names start with: {', '.join(steps[:6]) or ', '.join(list(tensors)[:3])}",
        hint=f"--strip-prefix {near}" if near else "name one of these with --strip-prefix",
    )


def _prefixes(tensors: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return every prefix that the network's longest name has in the file."""
    names = [name for name in own if not name.endswith(_TRACKED)] or list(own)
    if not names:
        return [""]
    longest = max(names, key=len)
    alike = [name for name in own if own[name] is own[longest]]
    found = {
        name[: -len(tied)]: None
        for name in tensors
        for tied in alike
        if f".{name}".endswith(f".{tied}")
    }
    return list(found)


def _fits(tensors: Mapping[str, Any], own: Mapping[str, Any], prefix: str) -> bool:
    filled = set()
    for name, value in own.items():
        if name.endswith(_TRACKED) or prefix + name not in tensors:
            continue
        if differ(value, tensors[prefix + name]):
            return False
        filled.add(id(value))
    if any(id(value) not in filled and not name.endswith(_TRACKED) for name, value in own.items()):
        return False
    inside = (name[len(prefix) :] for name in tensors if name.startswith(prefix))
    return all(name in own or _is_counter(name) for name in inside)


def _is_common(prefix: str) -> bool:
    return all(step in _COMMON for step in prefix.split(".")[:-1])


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def explain_mismatch(
    path: Path, tensors: Mapping[str, Any], own: Mapping[str, Any], match: Match
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
            f"the weights of {path.name} fill the network under another prefix only",
            why=f"every name of the network is there behind {match.choices[0]!r}",
            hint=f"--strip-prefix {match.choices[0]}",
        )
    return mismatch(path, own, match.tensors or tensors)


def mismatch(path: Path, own: Mapping[str, Any], state: Mapping[str, Any]) -> SourceError:
    """Return the error that lists missing and unexpected names, and other shapes."""
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {list(state[name].shape)}, the network's {list(own[name].shape)}"
        for name in own
        if name in state and differ(own[name], state[name])
    ]
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


def differ(own: Any, value: Any) -> bool:
    """Return whether two tensors have different shapes."""
    return hasattr(value, "shape") and tuple(value.shape) != tuple(getattr(own, "shape", ()))


def _few(names: list[str], separator: str = ", ") -> str:
    return separator.join(names[:4]) + (f"{separator}..." if len(names) > 4 else "")


def _meant(missing: list[str], unexpected: list[str]) -> str:
    for name in missing:
        near = nearest(name, unexpected, likeness=0.7)
        if near:
            return f"the network's {name} may be the file's {near}: did you mean the same?"
    return ""
