"""Bound the files that transformers reads from a folder, and the network that it builds.

A configuration of a few bytes can name a million layers, or be a link to an endless device. The
network is counted while it is built, and its bounds grow with the size of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_CONFIG = 16 << 20
"""Bytes of one configuration file."""

MAX_LAYERS = 10_000
MAX_VALUES = 1 << 28
"""Values that the weights do not account for: buffers such as masks and tables of positions."""

MAX_MODULES = 10_000
"""Modules beyond one for each `BYTES_PER_MODULE` of the weights."""

BYTES_PER_MODULE = 64
_COUNTS = ("layer", "depth", "block")
_READ_BY_TRANSFORMERS = ("config.json", "generation_config.json", "preprocessor_config.json")


def check_files(path: Path) -> None:
    """Refuse a folder with files that would block the reader, or have no end.

    Raises:
        SourceError: source-not-plain for a named pipe or a device, source-hf-oversized for a
            configuration that is too large.
    """
    for entry in sorted(path.iterdir()):
        if not entry.exists() or entry.is_file() or entry.is_dir():
            continue
        raise SourceError(
            "source-not-plain",
            f"{entry.name} in {path.name} is not a regular file",
            why="it is a named pipe, a device, or a link to one",
            hint="save the folder again with save_pretrained",
        )
    for name in _READ_BY_TRANSFORMERS:
        if not (path / name).is_file():
            continue
        size = (path / name).stat().st_size
        if size > MAX_CONFIG:
            raise _oversized(path, f"{name} has {size:,} bytes; at most {MAX_CONFIG:,} are read")


def check_counts(path: Path, config: Mapping[str, object]) -> None:
    """Refuse layer counts that no network has: `{"num_hidden_layers": 1000000}`.

    Raises:
        SourceError: source-hf-oversized.
    """
    # Elements of a list have the list's key: {"depths": [2, 2, 18, 2]} gives ("depths", 2), ...
    pending: list[tuple[str, object]] = [("", config)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            for name, item in value.items():
                pending.append((str(name), item))
        elif isinstance(value, list):
            for item in value:
                pending.append((key, item))
        elif isinstance(value, int) and value > MAX_LAYERS and any(word in key for word in _COUNTS):
            raise _oversized(path, f"config.json has {key} = {value:,}; at most {MAX_LAYERS:,}")


@contextmanager
def bounded(path: Path, weights_bytes: int) -> Iterator[None]:
    """Count the modules, parameters and buffers that are built, and stop at the bounds.

    Args:
        path: the folder, for messages.
        weights_bytes: size of all weights.

    Raises:
        SourceError: source-hf-oversized.
    """
    from torch.nn.modules import module as hooks

    # transformers registers every parameter twice, and tied ones once more.
    values = MAX_VALUES + 2 * weights_bytes
    modules = MAX_MODULES + weights_bytes // BYTES_PER_MODULE
    count = {"values": 0, "modules": 0}

    def count_module(*_: object) -> None:
        count["modules"] += 1
        if count["modules"] > modules:
            raise _oversized(path, f"it has more than {modules:,} modules")

    def count_values(_module: nn.Module, _name: str, tensor: torch.Tensor) -> None:
        if tensor is not None:  # a bias that is switched off is registered as None
            count["values"] += tensor.numel()
        if count["values"] > values:
            raise _oversized(path, f"its tensors have more than {values:,} values")

    # The hooks are global: transformers gives no access to the network while it is built.
    handles = [
        hooks.register_module_module_registration_hook(count_module),
        hooks.register_module_parameter_registration_hook(count_values),
        hooks.register_module_buffer_registration_hook(count_values),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _oversized(path: Path, why: str) -> SourceError:
    return SourceError(
        "source-hf-oversized",
        f"the configuration of {path.name} describes a larger network than its weights",
        why=why,
        hint="save the folder again with save_pretrained",
    )


def check_shape(path: Path, name: str, shape: list[int]) -> None:
    """Refuse an input of more values than a trial run can hold.

    Raises:
        SourceError: source-hf-oversized.
    """
    count = prod(shape)
    if count > MAX_VALUES:
        raise _oversized(path, f"its input {name} of shape {shape} has {count:,} values")
