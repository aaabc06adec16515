"""Outline a pickle: its keys and the kinds of its values, without running any of it.

Every class and function named by the pickle is replaced by an inert placeholder. The outline
serves to print a remedy that fits the file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

from edgepack.source.states import is_averaged


class _Inert:
    """Placeholder for any object of a pickle; its calls and assignments have no effect."""

    origin = ""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, *_: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Ignore an entry of a list."""

    def extend(self, _: object) -> None:
        """Ignore entries of a list."""

    def add(self, _: object) -> None:
        """Ignore an entry of a set."""


class _Entries(dict[object, object]):
    """Placeholder for an ordered dict; unlike a dict, it accepts attributes."""


class _Outline(pickle.Unpickler):
    """Unpickler that imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        """Return a placeholder; that of an ordered dict holds the entries."""
        # A pickle calls os.system by its name: find_class("os", "system") returns a class here,
        # whose call makes an empty object, and nothing else happens.
        if (module, name) == ("collections", "OrderedDict"):
            return _Entries
        return type("_Inert", (_Inert,), {"origin": f"{module}.{name}"})

    def persistent_load(self, entry: object) -> object:
        """Return a placeholder for a tensor's storage, or a class in the layout before 1.6."""
        # ("storage", <class FloatStorage>, "0", "cpu", 864), or before 1.6 ("module", <class Net>,
        # "net.py", "class Net(nn.Module): ...").
        if isinstance(entry, tuple) and entry[0] == "module":
            return entry[1]
        return _Inert()


def weights_expression(pickles: list[bytes]) -> str:
    """Return the Python expression for the weights in `content`, the unpickled file.

    A checkpoint {"epoch": 3, "model": <an Inert of nets.Small>} gives
    'content["model"].state_dict()'.

    Args:
        pickles: the pickles of a file of torch.save, the object last.
    """
    if not pickles:
        return "content.state_dict()"
    content = _outline(pickles[-1])
    if not isinstance(content, Mapping):
        return "content.state_dict()"
    if _is_state(content):
        return _expression("content", content)
    # The averaged weights first, as the loader prefers them.
    entries = sorted(content.items(), key=lambda entry: not is_averaged(str(entry[0])))
    for key, value in entries:
        if _is_state(value):
            return _expression(f"content[{key!r}]", value)
    for key, value in entries:
        if _is_module(value):
            return f"content[{key!r}].state_dict()"
    return 'content["model"]'


def _outline(data: bytes) -> object:
    try:
        return _Outline(io.BytesIO(data), encoding="latin1").load()
    except Exception:  # noqa: BLE001 - a damaged pickle; the outline only improves a message
        return None


def _origin(value: object) -> str:
    return value.origin if isinstance(value, _Inert) else ""


def _is_state(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(map(_is_tensor, value.values()))


def _is_tensor(value: object) -> bool:
    # Pickles call torch._utils._rebuild_tensor_v2, numpy._core.multiarray._reconstruct for arrays.
    name = _origin(value)
    return "_rebuild_" in name or "_reconstruct" in name


def _is_module(value: object) -> bool:
    name = _origin(value)
    return bool(name) and "_rebuild_" not in name and not name.startswith(("numpy", "argparse"))


def _expression(name: str, state: Mapping[object, object]) -> str:
    if all("_reconstruct" in _origin(value) for value in state.values()):
        return f"{{k: torch.from_numpy(v) for k, v in {name}.items()}}"
    return name
