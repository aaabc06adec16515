"""The state dicts inside a checkpoint, and the choice of the one that fills a network.

Training scripts save a dict: the weights under some key, their moving average (EMA) under
another, and counters, random states and the optimizer beside them. Every mapping with tensors in
it is a candidate, and the network's own names decide which candidates are complete.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError
from edgepack.source.names import Match, explain_mismatch, match_names
from edgepack.spec.document import nearest

# Where training scripts put the weights; of two complete sets the earlier key counts.
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights",
         "params", "module")  # fmt: skip

# Words in a key by which averaged weights are recognised: `state_dict_ema`, `g_ema`, `swa_model`.
_AVERAGED = frozenset({"ema", "swa", "averaged"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")

_DEPTH = 4
_LISTED = 6


@dataclass(frozen=True)
class State:
    """A state dict inside a checkpoint.

    Attributes:
        key: its path in the checkpoint, such as "ema.module"; "" where it is the whole file.
        tensors: tensors by name, and the extra state of modules.
        module: the torch module that was saved there; None for plain tensors.
        beside: the entries of the checkpoint that are no part of it, by path.
    """

    key: str
    tensors: Mapping[str, Any]
    module: Any | None = None
    beside: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[bool, int]:
        """Sort averaged weights first, then the whole file and the usual keys in their order."""
        averaged = any(word.lower() in _AVERAGED for word in _WORD.findall(self.key))
        steps = self.key.split(".") if self.key else _KEYS
        usual = next((_KEYS.index(step) for step in steps if step in _KEYS), len(_KEYS))
        return not averaged, usual


@dataclass(frozen=True)
class Selection:
    """The weights that were taken from a checkpoint, and what was left.

    Attributes:
        key: as `State.key`.
        prefix: what was removed from the front of every name.
        tensors: tensors under the network's names.
        left: the entries and groups of tensors that were not used.
        unused: the groups of tensors among them that belong to the same state dict.
        others: keys of other complete sets of weights.
        wrappers: steps that were removed inside names.
    """

    key: str
    prefix: str
    tensors: dict[str, Any]
    left: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the account for the ledger; "" where the whole file was taken as it is."""
        parts = [f"weights from {self.key!r}"] if self.key else []
        parts += [f"prefix {self.prefix!r} removed"] if self.prefix else []
        parts += [f"{step!r} removed from names" for step in self.wrappers]
        parts += [f"left: {shorten(self.left)}"] if self.left else []
        return "; ".join(parts)

    def warnings(self, file: str) -> tuple[str, ...]:
        """Return what the user should know: another complete set, and tensors without use."""
        messages = []
        if self.others:
            messages.append(
                f"took the weights under {self.key!r} of {file}; other complete sets: "
                + ", ".join(f"--weights {other}" for other in self.others)
            )
        if self.unused:
            messages.append(
                f"left tensors of {file} that the network does not have: {shorten(self.unused)}"
            )
        return tuple(messages)

    def to_json(self) -> dict[str, Any]:
        """Return the account as the report holds it."""
        return {"key": self.key, "prefix": self.prefix, "left": list(self.left)}


def shorten(names: Sequence[str], limit: int = _LISTED) -> str:
    """Join names with commas; those beyond the limit are counted."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def list_states(content: Any) -> list[State]:
    """Return every state dict and every module in what `torch.load` returned."""
    return list(_walk(content, "", (), set()))


def _walk(value: Any, key: str, beside: tuple[str, ...], seen: set[int]) -> Iterator[State]:
    import torch

    if id(value) in seen or (key.count(".") >= _DEPTH):
        return
    seen.add(id(value))
    if isinstance(value, torch.nn.Module):
        yield State(key, value.state_dict(), value, beside)
        return
    entries = _entries(value)
    tensors = {name: _tensor(v) for name, v in entries.items() if _is_state(name, v)}
    rest = [name for name in entries if name not in tensors]
    inside = f"{key}." if key else ""
    if any(isinstance(v, torch.Tensor) for v in tensors.values()):
        yield State(key, tensors, None, (*beside, *(inside + name for name in rest)))
    for name in rest:
        siblings = tuple(inside + other for other in entries if other != name)
        yield from _walk(entries[name], inside + name, (*beside, *siblings), seen)


def _entries(value: Any) -> dict[str, Any]:
    """Return the entries of a dict or a short list by name; an optimizer has none."""
    if isinstance(value, Mapping) and "param_groups" not in value:
        return {str(name): inner for name, inner in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 64:
        return {str(index): inner for index, inner in enumerate(value)}
    return {}


def _is_state(name: str, value: Any) -> bool:
    import numpy as np
    import torch

    return isinstance(value, (torch.Tensor, np.ndarray)) or name.endswith("_extra_state")


def _tensor(value: Any) -> Any:
    import numpy as np
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    return value


def narrow(path: Path, states: list[State], key: str) -> list[State]:
    """Keep the state dicts at or below the key that --weights names.

    Raises:
        SourceError: source-weights-key.
    """
    below = [state for state in states if state.key == key or state.key.startswith(f"{key}.")]
    if below:
        return below
    keys = [state.key for state in states if state.key]
    near = nearest(key, keys)
    raise SourceError(
        "source-weights-key",
        f"{path.name} has no weights under {key!r}",
        why=f"weights are under: {shorten(keys) or 'no key; the file itself is a state dict'}",
        hint=f"--weights {near or keys[0]}" if keys else "remove --weights",
    )


def require_states(path: Path, content: Any, states: list[State]) -> None:
    """Refuse a file without weights.

    Raises:
        SourceError: source-no-weights.
    """
    if states:
        return
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:8])
        why = f"it is a dict with the keys {keys or '(none)'}; none of them holds named tensors"
    else:
        why = f"it is of type {type(content).__module__}.{type(content).__qualname__}"
    raise SourceError(
        "source-no-weights",
        f"{path.name} holds no state dict",
        why=why,
        hint="save it with torch.save(model.state_dict(), PATH)",
    )


def prefer(path: Path, states: Sequence[State]) -> State:
    """Return the averaged weights, else those under the most usual key.

    Raises:
        SourceError: source-weights-ambiguous where two are equally good.
    """
    ordered = sorted(states, key=lambda state: state.rank)
    equal = [state for state in ordered if state.rank == ordered[0].rank]
    if len(equal) == 1:
        return ordered[0]
    raise SourceError(
        "source-weights-ambiguous",
        f"{path.name} holds {len(equal)} sets of weights that fill the network",
        why="they are under " + " and ".join(repr(state.key) for state in equal),
        hint=" or ".join(f"--weights {state.key}" for state in equal if state.key),
    )


def select(
    path: Path, states: Sequence[State], own: Mapping[str, Any], strip_prefix: str
) -> Selection:
    """Return the weights that fill the network.

    Args:
        path: the file, for errors.
        states: the candidates, at least one.
        own: the network's state dict, with its parameters as they are.
        strip_prefix: the prefix that the user named; "" for none.

    Raises:
        SourceError: source-strip-prefix, source-weights-ambiguous, source-weights-mismatch.
    """
    matches = [(state, match_names(path, state.tensors, own, strip_prefix)) for state in states]
    complete = {state.key: match for state, match in matches if match.complete}
    if not complete:
        best = max(matches, key=lambda pair: (pair[1].shared, [-int(r) for r in pair[0].rank]))
        raise explain_mismatch(path, best[0].tensors, own, best[1])
    chosen = prefer(path, [state for state, match in matches if match.complete])
    match: Match = complete[chosen.key]
    unused = _groups(match.left)
    return Selection(
        key=chosen.key,
        prefix=match.prefix,
        tensors=dict(match.tensors),
        left=(*unused, *chosen.beside),
        unused=_groups(name for name in match.left if name not in match.counters),
        others=tuple(key for key in complete if key and key != chosen.key),
        wrappers=match.wrappers,
    )


def _groups(names: Any) -> tuple[str, ...]:
    """Sum names up by their first step: "teacher.* (9 tensors)"."""
    counts = Counter(str(name).partition(".")[0] for name in names)
    return tuple(f"{step} ({n} tensor{'s' if n > 1 else ''})" for step, n in counts.items())
