"""The user's own functions that the options of a pass name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepack.source.binding import bind_in_order
from edgepack.source.eager import OutputOrder
from edgepack.source.network import build_network, find_function


class UserCode:
    """The functions of the user's that a pass's options name; `chain.module.Code`.

    Args:
        torch: the torch module.
        search: folders that they are looked for in, before the current one.
        option: where they were named, for errors.
        inputs: names of the model's inputs, in the order in which every module here takes them.
        outputs: names of its outputs, in the order in which every module here returns them.
    """

    def __init__(
        self,
        torch: Any,
        search: tuple[Path, ...],
        option: str,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        self._torch, self._search, self._option = torch, search, option
        self._inputs, self._outputs = inputs, outputs

    def build(self, spec: str, arguments: Mapping[str, Any]) -> Any:
        """Build the torch module of a factory: in eval mode, bound as the model is, flat outputs.

        Raises SourceError: those of the factory, source-inputs-unmatched, source-inputs-missing.
        """
        module, _, _ = self._built(spec, arguments)
        module = bind_in_order(module, self._inputs)
        module.register_forward_hook(OutputOrder(self._outputs))
        return module

    def function(self, spec: str) -> Callable[..., Any]:
        """A function."""
        return find_function(self._torch, spec, self._search, self._option)[0]

    def digest(self, spec: str, arguments: Mapping[str, Any] | None) -> str:
        """SHA-256 of the code behind a function; a factory, which has arguments, is called."""
        if arguments is None:
            return find_function(self._torch, spec, self._search, self._option)[1]
        return self._built(spec, arguments)[1]

    def _built(self, spec: str, arguments: Mapping[str, Any]) -> tuple[Any, str, list[str]]:
        return build_network(self._torch, spec, arguments, self._search, self._option)
