"""Find the state dicts inside a checkpoint, and select the one that fills a network.

Training scripts save a dict: the weights under some key, their moving average (EMA) under
another, and counters, random states and the optimizer beside them. Every mapping that holds
tensors is a candidate, and complete if it has all names of the network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.ledger import SelectionDocument
from edgepack.listing import join_names
from edgepack.source.names import Match, explain_mismatch, match_names
from edgepack.spec.suggestions import nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

# Keys of weights in training scripts; of two complete sets the earlier key is preferred.
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights",
         "params", "module")  # fmt: skip

# Words in the keys of averaged weights: `state_dict_ema`, `g_ema`, `swa_model`.
_AVERAGED = frozenset({"ema", "swa", "averaged"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")

_DEPTH = 4
LISTED = 6


@dataclass(frozen=True)
class State:
    """State dict inside a checkpoint.

    Attributes:
        key: its path in the checkpoint, such as "ema.module"; "" if it is the whole file.
        tensors: tensors by name, and the extra state of modules.
        module: the torch module saved under this key; None for plain tensors.
        beside: paths of the checkpoint's other entries.
    """

    key: str
    tensors: Mapping[str, torch.Tensor]
    module: nn.Module | None = None
    beside: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[bool, int]:
        """Sort averaged weights first, then the whole file and the usual keys in their order.

        "model_ema" gives (False, 9), "" (True, 0), "state_dict" (True, 0), "model" (True, 3).
        """
        return not is_averaged(self.key), self._key_rank()

    def _key_rank(self) -> int:
        """Return the rank of the first usual key in the path; their number for none."""
        if not self.key:
            return 0
        for step in self.key.split("."):
            if step in _KEYS:
                return _KEYS.index(step)
        return len(_KEYS)


@dataclass(frozen=True)
class Selection:
    """Weights taken from a checkpoint, with an account of the rest.

    Attributes:
        key: as `State.key`.
        prefix: prefix removed from every name.
        tensors: tensors under the network's names.
        left: unused entries and groups of tensors.
        unused: the groups among them that belong to the same state dict.
        others: keys of other complete sets of weights.
        wrappers: steps removed inside names.
    """

    key: str
    prefix: str
    tensors: dict[str, torch.Tensor]
    left: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the account for the ledger; "" if the whole file was used unchanged."""
        parts = []
        if self.key:
            parts.append(f"weights from {self.key!r}")
        if self.prefix:
            parts.append(f"prefix {self.prefix!r} removed")
        parts += [f"{step!r} removed from names" for step in self.wrappers]
        if self.left:
            parts.append(f"left: {join_names(self.left, LISTED)}")
        return "; ".join(parts)

    def warnings(self, file: str) -> tuple[str, ...]:
        """Return warnings about other complete sets, and about unused tensors."""
        messages = []
        if self.others:
            messages.append(
                f"used the weights under {self.key!r} of {file}; other complete sets: "
                + ", ".join(f"--weights {other}" for other in self.others)
            )
        if self.unused:
            names = join_names(self.unused, LISTED)
            messages.append(f"ignored tensors of {file} that the network does not have: {names}")
        return tuple(messages)

    def to_json(self) -> SelectionDocument:
        """Return the account in the report's form."""
        return {"key": self.key, "prefix": self.prefix, "left": list(self.left)}


def is_averaged(key: str) -> bool:
    """Return True if a key names averaged weights: "state_dict_ema", "ema.module"."""
    words = {word.lower() for word in _WORD.findall(key)}
    return not words.isdisjoint(_AVERAGED)


def list_states(content: object) -> list[State]:
    """Return every state dict and every module in the result of `torch.load`."""
    return list(_walk(content, "", (), set()))


def _walk(value: object, key: str, beside: tuple[str, ...], visited: set[int]) -> Iterator[State]:
    """Yield the state dicts of nested entries, outer ones first.

    {"epoch": 3, "model": {"w": tensor}} gives State("model", {"w": tensor}, None, ("epoch",)).
    """
    import torch

    # Entries can refer to each other, so an object is visited once.
    if id(value) in visited or (key.count(".") >= _DEPTH):
        return
    visited.add(id(value))
    if isinstance(value, torch.nn.Module):
        yield State(key, value.state_dict(), value, beside)
        return
    entries = _entries(value)
    inside = f"{key}." if key else ""
    tensors, rest = {}, {}
    for name, entry in entries.items():
        if _is_state(name, entry):
            tensors[name] = _tensor(entry)
        else:
            rest[inside + name] = entry
    # A mapping of extra state alone is not a state dict.
    if any(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        yield State(key, tensors, None, (*beside, *rest))
    paths = [inside + name for name in entries]
    for path, entry in rest.items():
        siblings = [sibling for sibling in paths if sibling != path]
        yield from _walk(entry, path, (*beside, *siblings), visited)


def _entries(value: object) -> dict[str, object]:
    """Return the entries of a dict or a short list by name; an optimizer has none."""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping) and "param_groups" not in value:
        items = value.items()
    elif isinstance(value, (list, tuple)) and len(value) <= 64:
        items = enumerate(value)
    return {str(name): inner for name, inner in items}


def _is_state(name: str, value: object) -> bool:
    import numpy as np
    import torch

    return isinstance(value, (torch.Tensor, np.ndarray)) or name.endswith("_extra_state")


def _tensor(value: object) -> torch.Tensor | None:
    import numpy as np
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    return value


def narrow(path: Path, states: list[State], key: str) -> list[State]:
    """Return the state dicts at or below the key that --weights names.

    Raises:
        SourceError: source-weights-key.
    """
    below = [state for state in states if state.key == key or state.key.startswith(f"{key}.")]
    if below:
        return below
    keys = [state.key for state in states if state.key]
    hint = "remove --weights"
    if keys:
        hint = f"--weights {nearest(key, keys) or keys[0]}"
    raise SourceError(
        "source-weights-key",
        f"{path.name} has no weights under {key!r}",
        why="weights are under: "
        f"{join_names(keys, LISTED) or 'no key; the file itself is a state dict'}",
        hint=hint,
    )


def require_states(path: Path, content: object, states: list[State]) -> None:
    """Refuse a file without weights.

    Raises:
        SourceError: source-no-weights.
    """
    if states:
        return
    if isinstance(content, Mapping):
        keys = ", ".join(map(repr, list(content)[:8]))
        why = f"it is a dict with the keys {keys or '(none)'}; none of them has named tensors"
    else:
        why = f"it is of type {type(content).__module__}.{type(content).__qualname__}"
    raise SourceError(
        "source-no-weights",
        f"{path.name} holds no state dict",
        why=why,
        hint="save it with torch.save(model.state_dict(), PATH)",
    )


def prefer(path: Path, states: Sequence[State]) -> State:
    """Return the averaged weights, else those under the commonest key.

    Raises:
        SourceError: source-weights-ambiguous if two are equally good.
    """
    best = min(state.rank for state in states)
    equal = [state for state in states if state.rank == best]
    if len(equal) == 1:
        return equal[0]
    keys = [state.key for state in equal]
    raise SourceError(
        "source-weights-ambiguous",
        f"{path.name} holds {len(keys)} sets of weights that fill the network",
        why="they are under " + " and ".join(map(repr, keys)),
        hint=" or ".join(f"--weights {key}" for key in keys if key),
    )


def select(
    path: Path, states: Sequence[State], network: Mapping[str, torch.Tensor], strip_prefix: str
) -> Selection:
    """Return the weights that fill the network.

    Args:
        path: the file, for errors.
        states: the candidates, at least one.
        network: its state dict, with its parameters as they are.
        strip_prefix: the prefix that the user named; "" for none.

    Raises:
        SourceError: source-strip-prefix, source-weights-ambiguous, source-weights-mismatch.
    """
    # {"state_dict": ..., "ema": {"module": ...}, "teacher": ...} has three candidates. Those that
    # fill the network are complete, and the averaged one of them wins; if none does, the error
    # shows the one that has most names in common.
    matches: list[tuple[State, Match]] = []
    complete: dict[str, Match] = {}
    candidates = []
    for state in states:
        match = match_names(path, state.tensors, network, strip_prefix)
        matches.append((state, match))
        if match.complete:
            complete[state.key] = match
            candidates.append(state)
    if not candidates:
        state, match = max(matches, key=_closeness)
        raise explain_mismatch(path, state.tensors, network, match)
    preferred = prefer(path, candidates)
    match = complete[preferred.key]
    return Selection(
        key=preferred.key,
        prefix=match.prefix,
        tensors=dict(match.tensors),
        left=(*_groups(match.left), *preferred.beside),
        unused=_groups(match.left, ignored=match.counters),
        others=tuple(key for key in complete if key not in ("", preferred.key)),
        wrappers=match.wrappers,
    )


def _closeness(pair: tuple[State, Match]) -> tuple[int, bool, int]:
    """Sort incomplete matches by the names in common, then as `State.rank` does, the best last."""
    state, match = pair
    is_plain, key_rank = state.rank
    return match.shared, not is_plain, -key_rank


def _groups(names: Iterable[str], ignored: Collection[str] = ()) -> tuple[str, ...]:
    """Count names by their first step: "teacher (9 tensors)"."""
    counts = Counter[str]()
    for name in names:
        if name not in ignored:
            counts[name.partition(".")[0]] += 1
    groups = []
    for step, count in counts.items():
        noun = "tensors" if count > 1 else "tensor"
        groups.append(f"{step} ({count} {noun})")
    return tuple(groups)
