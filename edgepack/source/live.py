"""Load a torch module that a Python program has in memory; the program's own is not changed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.source.digest import Digest
from edgepack.source.model import Source

if TYPE_CHECKING:
    from torch import nn

# Attributes under which torch.compile and the wrappers for several GPUs keep the network.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module",
             "DistributedDataParallel": "module"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LiveModel:
    """Torch module in memory, in place of the path of a model.

    Attributes:
        module: the module, which is not changed.
        name: of the model, for files and the report.
    """

    module: nn.Module
    name: str


def load_live(model: LiveModel) -> Source:
    """Return the source for a copy of a module: in eval mode, on the CPU, in float32.

    Raises:
        SourceError: source-live-copy, source-weights-nonfinite, source-weights-dtype.
    """
    from edgepack.source.eager import flatten_outputs
    from edgepack.source.hooks import fix_normalized_weights
    from edgepack.source.pickled import module_source
    from edgepack.source.precision import cast_to_float32
    from edgepack.source.torch_host import import_torch
    from edgepack.source.weights import check_finite, named_tensors
    from edgepack.source.weights_digest import hash_weights

    import_torch("A torch module")
    path = Path(model.name)
    network = _unwrap(model.module)
    check_finite(path, named_tensors(network))
    module = _copy(network).cpu()
    module.eval()
    notes = [f"Copied the module {type(network).__qualname__}."]
    notes += fix_normalized_weights(module)
    notes += cast_to_float32(module)
    # The digest precedes the hook, as in the checkpoint's: the hook is edgepack's own.
    weights_digest = hash_weights(module)
    digest = Digest("live")
    digest.text("weights", weights_digest)
    _add_definitions(digest, module)
    module.register_forward_hook(flatten_outputs)
    source = module_source(
        path,
        "state-dict",
        digest.hexdigest(),
        module,
        trusted=False,
        notes=tuple(notes),
        size=_count_bytes(network),
    )
    return replace(source, weights_digest=weights_digest)


def _unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside torch.compile's or DataParallel's wrapper."""
    # DataParallel(torch.compile(net)) has two of them.
    while type(module).__name__ in _WRAPPERS:
        module = getattr(module, _WRAPPERS[type(module).__name__])
    return module


def _copy(module: nn.Module) -> nn.Module:
    import torch

    # Tensors computed from parameters, as the older weight_norm keeps them, refuse a deep copy.
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # a user's module may raise anything
        raise SourceError(
            "source-live-copy",
            "the module cannot be copied",
            why=f"{type(error).__name__}: {error}",
            hint="copy.deepcopy(model) must work; or save its state dict, and pass the path with "
            "arch='net.py:factory'",
        ) from error


def _count_bytes(module: nn.Module) -> int:
    """Return the bytes of a state dict, shared tensors once."""
    tensors = {}
    for tensor in module.state_dict(keep_vars=True).values():
        # A tied embedding and output layer are two names of one tensor, stored once.
        if hasattr(tensor, "element_size"):
            tensors[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(tensors.values())


def _add_definitions(digest: Digest, module: nn.Module) -> None:
    """Add the code of a module's classes to a digest, and the values that no state dict holds.

    Classes in files are identified by their files. The cell of a notebook has none, and a script
    contains more than the network, so that classes in `__main__` are identified by the bytecode of
    their methods, and of the functions and classes that these name.
    """
    from edgepack.source.code import add_code
    from edgepack.source.unsaved import add_state, hash_value

    definitions = _Definitions()
    for part in module.modules():
        for base in type(part).__mro__:
            definitions.follow(base)
    for name, code in sorted(definitions.codes.items()):
        digest.text(f"code:{name}", code)
    for name, value in sorted(definitions.values.items()):
        digest.text(f"global:{name}", hash_value(value))
    add_code(digest, definitions.roots, (), module)
    add_state(digest, module)


class _Definitions:
    """Functions and classes of `__main__` that a class refers to, directly or not.

    Attributes:
        codes: description of the bytecode, by qualified name.
        values: plain global values that the code names, by name.
        roots: Python modules in files that the code names.
    """

    def __init__(self) -> None:
        self.codes: dict[str, str] = {}
        self.values: dict[str, object] = {}
        self.roots: set[ModuleType] = set()

    def follow(self, value: object) -> None:
        """Record a function or a class, and everything that its code names."""
        if isinstance(value, ModuleType):
            self.roots.add(value)
            return
        if not isinstance(value, (type, FunctionType)):
            return
        if value.__module__ != "__main__":
            if value.__module__ in sys.modules:
                self.roots.add(sys.modules[value.__module__])
            return
        if isinstance(value, FunctionType):
            self._follow_function(value)
            return
        if value.__qualname__ in self.codes:
            return
        self.codes[value.__qualname__] = "class"
        for member in vars(value).values():
            # staticmethod, classmethod and property wrap their function.
            function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            if isinstance(function, FunctionType):
                self._follow_function(function)
        for base in value.__bases__:
            self.follow(base)

    def _follow_function(self, function: FunctionType) -> None:
        name = function.__qualname__
        if name in self.codes:
            return
        codes = list(_list_codes(function.__code__))
        texts = []
        for code in codes:
            constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
            texts.append(f"{code.co_code.hex()} {code.co_names} {constants}")
        self.codes[name] = "\n".join([*texts, repr(function.__defaults__)])
        for code in codes:
            for key in code.co_names:
                if key in function.__globals__:
                    self._follow_global(key, function.__globals__[key])

    def _follow_global(self, name: str, value: object) -> None:
        if isinstance(value, (ModuleType, type, FunctionType)):
            self.follow(value)
        else:
            self.values[name] = value


def _list_codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the bytecode of a function, and of the functions that are defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_codes(constant)
