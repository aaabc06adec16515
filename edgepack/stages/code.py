"""Load the user's functions named by the options of a pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgepack.source.binding import bind_in_order
from edgepack.source.eager import OutputOrder
from edgepack.source.network import build_network, find_function

if TYPE_CHECKING:
    from torch import nn


class UserCode:
    """Loader for the user's functions named by a pass's options; implements `passes.module.Code`.

    Args:
        torch: the torch module.
        search: folders that are searched for them, before the current one.
        option: the option that names them, for errors.
        inputs: names of the model's inputs, in the order of the modules' arguments.
        outputs: names of its outputs, in the order of the modules' results.
    """

    def __init__(
        self,
        torch: ModuleType,
        search: tuple[Path, ...],
        option: str,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        self._torch, self._search, self._option = torch, search, option
        self._inputs, self._outputs = inputs, outputs

    def build(self, spec: str, arguments: Mapping[str, object]) -> nn.Module:
        """Build a factory's torch module: in eval mode, bound like the model, with flat outputs.

        Raises SourceError: those of the factory, source-inputs-unmatched, source-inputs-missing.
        """
        module, _, _ = self._build(spec, arguments)
        module = bind_in_order(module, self._inputs)
        module.register_forward_hook(OutputOrder(self._outputs))
        return module

    def function(self, spec: str) -> Callable[..., Any]:
        """Return a function."""
        return find_function(self._torch, spec, self._search, self._option)[0]

    def digest(self, spec: str, arguments: Mapping[str, object] | None) -> str:
        """Return the SHA-256 of a function's code; with arguments, call it as a factory first."""
        if arguments is None:
            return find_function(self._torch, spec, self._search, self._option)[1]
        return self._build(spec, arguments)[1]

    def _build(
        self, spec: str, arguments: Mapping[str, object]
    ) -> tuple[nn.Module, str, list[str]]:
        return build_network(self._torch, spec, arguments, self._search, self._option)
