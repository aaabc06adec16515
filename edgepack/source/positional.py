"""Modules that take their inputs by position and return a tuple of tensors.

Only importable where torch is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from edgepack.source.eager import flatten


class TreeModule(torch.nn.Module):  # type: ignore[misc]
    """An exported program's module, fed with its tensors in order.

    Args:
        inner: what `ExportedProgram.module()` gave.
        in_spec: how the tensors nest in its arguments and keyword arguments.
    """

    def __init__(self, inner: Any, in_spec: Any) -> None:
        super().__init__()
        self.inner = inner
        self.in_spec = in_spec
        self.training = False

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        """Call the program; its outputs in order."""
        args, kwargs = pytree.tree_unflatten(list(tensors), self.in_spec)
        return flatten(self.inner(*args, **kwargs))

    def train(self, mode: bool = True) -> TreeModule:
        """Nothing: an exported program is fixed in the mode that it was exported in."""
        return self


class NamedModule(torch.nn.Module):  # type: ignore[misc]
    """A module that takes keyword arguments and returns named outputs, made positional.

    The arguments stand one by one, not as `*args`, so that `torch.export` takes a shape for each.

    Args:
        inner: the module.
        input_names: its keyword arguments, in order; at most four.
        output_names: the attributes of its answer, in order.
    """

    def __init__(
        self, inner: Any, input_names: tuple[str, ...], output_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.inner = inner
        self.input_names = input_names
        self.output_names = output_names

    def forward(self, a: Any, b: Any = None, c: Any = None, d: Any = None) -> tuple[Any, ...]:
        """Call the module; its named outputs in order."""
        fed = dict(zip(self.input_names, (a, b, c, d), strict=False))
        answer = self.inner(**fed, return_dict=True)
        return tuple(answer[name] for name in self.output_names)
