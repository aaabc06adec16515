"""Modules that take their inputs by position and return a tuple of tensors.

Importing this module requires torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from edgepack.source.eager import flatten, output_leaves

if TYPE_CHECKING:
    from torch import nn


MAX_INPUTS = 4
"""Parameters of `NamedModule.forward`; text has three inputs at most, and all else has one."""


class TreeModule(torch.nn.Module):  # type: ignore[misc]
    """Module of an exported program, called with its tensors in order.

    Args:
        inner: the result of `ExportedProgram.module()`.
        in_spec: tree of its arguments and keyword arguments.
        leaves: the inputs in the order of `in_spec`: `TENSOR`, or None for an optional one that
            the program was exported without.
    """

    TENSOR = object()

    def __init__(self, inner: nn.Module, in_spec: object, leaves: tuple[object, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.in_spec = in_spec
        self.leaves = leaves
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the program; return its outputs in order."""
        # Leaves (TENSOR, None, TENSOR) and the tensors a, b give (a, None, b).
        leaves = list(self.leaves)
        pending = iter(tensors)
        for index, leaf in enumerate(leaves):
            if leaf is self.TENSOR:
                leaves[index] = next(pending)
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        return flatten(self.inner(*args, **kwargs))

    def train(self, mode: bool = True) -> TreeModule:
        """Do nothing: an exported program keeps the mode of its export."""
        return self


class NamedModule(torch.nn.Module):  # type: ignore[misc]
    """Module with keyword arguments and named outputs, called by position.

    Its forward has single parameters, not `*args`, so that `torch.export` takes a shape for each.

    Args:
        inner: the module.
        input_names: its keyword arguments, in order; at most `MAX_INPUTS`.
        output_names: the tensors of its answer, in order, as `name_outputs` names them.
    """

    def __init__(
        self, inner: nn.Module, input_names: tuple[str, ...], output_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        if len(input_names) > MAX_INPUTS:
            raise ValueError(f"{len(input_names)} inputs; forward takes {MAX_INPUTS}")
        self.inner = inner
        self.input_names = input_names
        self.output_names = output_names

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor | None = None,
        c: torch.Tensor | None = None,
        d: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Call the module; return its named outputs in order."""
        # Input names (input_ids, attention_mask) and the tensors x, m, None, None give
        # inner(input_ids=x, attention_mask=m).
        tensors = (a, b, c, d)[: len(self.input_names)]
        answer = self.inner(**dict(zip(self.input_names, tensors, strict=True)), return_dict=True)
        outputs = {".".join(path): tensor for path, tensor in output_leaves(answer)}
        return tuple(outputs[name] for name in self.output_names)
