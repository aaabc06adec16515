"""Digest the values of a module that no state dict holds.

Non-persistent buffers, tensors and numbers in plain attributes, closures of hooks and functions:
everything that a factory reads ends up in one of these. The exceptions (the inside of compiled
objects, values read in the forward itself) are caught by `stages.identify`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import types
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from edgepack.source.digest import Digest

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_OBJECTS = 100_000
"""Most objects that are followed from one attribute: a module may refer to a whole data set."""

# Attributes of every torch module: parts of the state dict, and numbers that count hooks.
_OF_TORCH = frozenset(
    ["training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set",
     "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
     "_load_state_dict_post_hooks", "_backward_hooks", "_backward_pre_hooks",
     "_is_full_backward_hook", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
     "_forward_pre_hooks_with_kwargs", "_compiled_call_impl"]
)  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_SCALARS = (bool, int, float, complex, bytes, type(None))
# Objects of the standard library hold locks, files and clocks; these hold values.
_HOLDERS = ("argparse", "types", "collections", "decimal", "fractions", "datetime", "enum")


def add_state(digest: Digest, module: nn.Module) -> None:
    """Add to a digest everything of a module but its parameters and persistent buffers."""
    walk = _Walk(module)
    saved = set(module.state_dict())
    for name, buffer in module.named_buffers():
        if name not in saved:
            digest.text(f"buffer:{name}", _hash(_array(buffer)))
    for name, part in module.named_modules():
        for attribute, value in walk.attributes(part):
            digest.text(f"attribute:{name}.{attribute}", _hash(walk.pieces(value)))


def add_globals(digest: Digest, code: types.ModuleType) -> None:
    """Add to a digest the plain values at the top level of a user's Python module."""
    walk = _Walk(None)
    for name, value in sorted(vars(code).items()):
        if not name.startswith("__") and _is_plain(value):
            digest.text(f"global:{code.__name__}.{name}", _hash(walk.pieces(value)))


def hash_value(value: object) -> str:
    """Return the SHA-256 of a value: numbers, containers, arrays, modules, plain objects."""
    return _hash(_Walk(None).pieces(value))


def _hash(pieces: Iterator[bytes]) -> str:
    # Each piece is preceded by its length, so that "ab", "c" and "a", "bc" differ.
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(b"%d:" % len(piece))
        hasher.update(piece)
    return hasher.hexdigest()


class _Walk:
    """Traversal of the values of attributes.

    Args:
        root: module without whose parts, parameters and persistent buffers the traversal is,
            since the checkpoint determines them; None for none.
    """

    def __init__(self, root: nn.Module) -> None:
        self._excluded: set[int] = set()
        if root is not None:
            self._excluded.update(map(id, root.modules()))
            self._excluded.update(map(id, root.state_dict(keep_vars=True).values()))

    def attributes(self, part: nn.Module) -> Iterator[tuple[str, object]]:
        """Yield the plain attributes of a torch module, in the order of their names."""
        for attribute, value in sorted(vars(part).items()):
            if attribute in _HOOKS:
                # The keys count all hooks of the process.
                yield attribute, list(value.values())
            elif attribute not in _OF_TORCH:
                yield attribute, value

    def pieces(self, value: object) -> Iterator[bytes]:
        """Yield bytes that identify a value; of an object that is not followed, its class alone.

        {"scale": 2.0} gives b"builtins.dict", b"builtins.str", b"scale", b"builtins.float" and
        b"2.0".
        """
        visited = set(self._excluded)
        pending, count = [value], 0
        while pending and count < MAX_OBJECTS:
            item = pending.pop()
            count += 1
            yield f"{type(item).__module__}.{type(item).__qualname__}".encode()
            if isinstance(item, _SCALARS):
                yield repr(item).encode()
            elif isinstance(item, (str, PurePath)):
                yield _text(str(item)).encode()
            elif id(item) not in visited:
                visited.add(id(item))
                if _is_array(item):
                    yield from _array(item)
                else:
                    # Reversed, since the last one is taken first.
                    pending.extend(reversed(self._parts(item)))

    def _parts(self, value: object) -> list[object]:
        """Return the values inside of one, in an order that is the same in every run."""
        if isinstance(value, (types.ModuleType, type)):
            return []  # the digest of the code covers them
        if _is_module(value):
            # A module outside the network: no state dict holds its weights.
            parts: list[object] = [*value.named_parameters(), *value.named_buffers()]
            for part in value.modules():
                parts.extend(self.attributes(part))
            return parts
        if isinstance(value, Mapping):
            return list(chain.from_iterable(value.items()))
        if isinstance(value, (tuple, list)):
            return list(value)
        if isinstance(value, (set, frozenset)):
            return list[object](sorted(_hash(self.pieces(item)) for item in value))
        if isinstance(value, partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, types.FunctionType):
            return _function(value)
        if isinstance(value, types.MethodType):
            return [value.__func__]
        return _fields(value)


def _text(value: str) -> str:
    # A moved checkout is the same code, and another digest covers the contents of the files.
    if value.startswith(os.sep):
        return PurePath(value).name
    return value


def _function(value: types.FunctionType) -> list[object]:
    # Bytecode without line numbers: moving a function in its file does not change its digest.
    code = value.__code__
    constants = list(filter(_is_plain, code.co_consts))
    cells = list(map(_content, value.__closure__ or ()))
    return [code.co_code, constants, code.co_names, value.__defaults__, value.__kwdefaults__, cells]


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def _fields(value: object) -> list[object]:
    """Return the attributes of a plain object: a configuration, a name space, a dataclass."""
    top = type(value).__module__.partition(".")[0]
    if top in sys.stdlib_module_names and top not in _HOLDERS:
        return []
    content = getattr(value, "__dict__", None)
    if not isinstance(content, dict):
        if not dataclasses.is_dataclass(value):
            return []
        # A dataclass with slots has no __dict__.
        content = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    # Namespace(scale=2.0, act="relu") gives ["act", "relu", "scale", 2.0], in the same order in
    # every run and for any order of assignment.
    entries: list[tuple[object, object]] = sorted(content.items(), key=lambda entry: str(entry[0]))
    return list(chain.from_iterable(entries))


def _array(value: np.ndarray | torch.Tensor) -> Iterator[bytes]:
    """Yield the type, the shape and the bytes of an array or a tensor."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.grad_fn is not None:
            return  # computed from parameters, as the older weight_norm does
        yield f"{value.dtype} {tuple(value.shape)} {value.layout}".encode()
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            return
        # As bytes, since numpy lacks some of torch's types.
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    yield f"{value.dtype} {value.shape}".encode()
    if value.dtype.hasobject:
        yield repr(value.tolist()).encode()
    else:
        yield np.ascontiguousarray(value).tobytes()


def _is_plain(value: object) -> bool:
    containers = (str, tuple, list, dict, set, frozenset)
    return isinstance(value, (*_SCALARS, *containers)) or _is_array(value)


def _is_array(value: object) -> TypeGuard[np.ndarray | torch.Tensor]:
    import torch

    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_module(value: object) -> TypeGuard[nn.Module]:
    import torch

    return isinstance(value, torch.nn.Module)
