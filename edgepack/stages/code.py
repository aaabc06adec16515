"""The user's own functions that the options of a pass name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepack.source.eager import flatten_outputs
from edgepack.source.network import build_network, find_function


class UserCode:
    """The functions of the user's that a pass's options name; `chain.module.Code`.

    Args:
        torch: the torch module.
        search: folders that they are looked for in, before the current one.
        option: where they were named, for errors.
    """

    def __init__(self, torch: Any, search: tuple[Path, ...], option: str) -> None:
        self._torch, self._search, self._option = torch, search, option

    def build(self, spec: str, arguments: Mapping[str, Any]) -> Any:
        """The torch module that a factory builds, in eval mode, with plain outputs."""
        module, _, _ = self._built(spec, arguments)
        module.register_forward_hook(flatten_outputs)
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
