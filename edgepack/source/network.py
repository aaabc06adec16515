"""Build a network with the user's factory, and digest the code behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.source.code import Opened, add_code, is_installed, watch_files
from edgepack.source.digest import Digest
from edgepack.source.environment import watch_environment
from edgepack.source.factory import Factory, find, importable
from edgepack.source.hooks import run_pre_hooks
from edgepack.source.precision import cast_to_float32
from edgepack.source.unsaved import add_globals, add_state

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_network(
    torch: ModuleType,
    arch: str,
    arch_args: Mapping[str, object],
    search: tuple[Path, ...],
    option: str = "--arch",
) -> tuple[nn.Module, str, list[str]]:
    """Build a network; return it with the digest of its code, and notes.

    The digest covers the code, the files and environment variables that it read, and the tensors
    and other values that no state dict holds.

    Args:
        torch: the torch module.
        arch: the factory, "package.module:function" or "path/to/file.py:function".
        arch_args: its keyword arguments.
        search: folders that are searched for it.
        option: the option that names it, for errors.

    Raises SourceError: those of the factory, and source-weights-unsaved.
    """
    with importable(search), watch_files() as opened, watch_environment() as environment:
        before = set(sys.modules)
        factory = find(arch, search, option)
        module = factory.build(torch, arch_args)
        _check_unsaved(torch, factory, arch_args, module)
        roots = [factory.module, *_new_modules(before)]
        names, digest = _code_digest(factory, roots, opened, environment, module)
    # The other names are of files that the code read: "file:000000:labels.json".
    count = sum(not name.startswith("file:") for name in names)
    files = "1 file" if count == 1 else f"{count} files"
    note = f"Built the network with {Path(arch).name}, from {files} of code."
    return module, digest, [note, *cast_to_float32(module)]


def find_function(
    torch: ModuleType, spec: str, search: tuple[Path, ...], option: str
) -> tuple[Callable[..., object], str]:
    """Return a function of the user's, and the digest of the code behind it.

    Raises SourceError: source-arch-form, source-arch-import, source-arch-missing.
    """
    with importable(search), watch_files() as opened, watch_environment() as environment:
        before = set(sys.modules)
        factory = find(spec, search, option)
        roots = [factory.module, *_new_modules(before)]
        _, digest = _code_digest(factory, roots, opened, environment, torch.nn.Module())
    return factory.function, digest


def _new_modules(before: set[str]) -> list[ModuleType]:
    """Return the user's modules that were imported since `before` was taken.

    Installed packages are omitted, since they may have been imported earlier in this process;
    they are reached from the modules that use them.
    """
    modules = []
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None)
        if name not in before and isinstance(file, str) and not is_installed(Path(file)):
            modules.append(module)
    return modules


def _code_digest(
    factory: Factory,
    roots: list[ModuleType],
    opened: Opened,
    environment: Mapping[str, str | None],
    module: nn.Module,
) -> tuple[tuple[str, ...], str]:
    # `opened` still grows while the digest reads the sources, so it is copied.
    digest = Digest("code")
    names = add_code(digest, roots, opened.paths.copy(), module)
    digest.text("factory", factory.function.__qualname__)
    digest.json("environment", dict(environment))
    by_name = {root.__name__: root for root in roots}
    for name in sorted(by_name):
        add_globals(digest, by_name[name])
    add_state(digest, module)
    return names, digest.hexdigest()


def _check_unsaved(
    torch: ModuleType, factory: Factory, arch_args: Mapping[str, object], module: nn.Module
) -> None:
    """Refuse random tensors that no state dict holds.

    A second network, built with another random seed, gets the saved tensors of the first. Views
    of these tensors, and tensors that forward pre-hooks compute from them, are then equal in both;
    random tensors are not.
    """
    # For example `self.freqs = torch.randn(16)` in place of a buffer: the trained values are lost,
    # and every build would verify a network with others.
    if not _unsaved(torch, module):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        second = factory.function(**arch_args)
        _copy_saved(torch, module, second)
        run_pre_hooks(module)
        run_pre_hooks(second)
    unsaved, unsaved_again = _unsaved(torch, module), _unsaved(torch, second)
    for name, tensor in unsaved.items():
        other = unsaved_again.get(name)
        # NaN differs from itself, so it is replaced before the comparison.
        if other is None or not torch.equal(
            torch.nan_to_num(tensor), torch.nan_to_num(other.to(tensor.dtype))
        ):
            raise SourceError(
                "source-weights-unsaved",
                f"the network's {name} is drawn at random, and no state dict holds it",
                why=f"two calls of {factory.spec} gave two values of shape {list(tensor.shape)}",
                hint="make it a persistent buffer or a parameter, and save the weights again",
            )


def _copy_saved(torch: ModuleType, module: nn.Module, second: nn.Module) -> None:
    """Copy parameters and persistent buffers, in place, into a network of the same factory."""
    second.eval()
    target = second.state_dict()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            other = target.get(name)
            if isinstance(other, torch.Tensor) and other.shape == value.shape:
                other.copy_(value)


def _unsaved(torch: ModuleType, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return non-persistent buffers, and tensors in plain attributes, by name."""
    tensors = dict(module.named_buffers())
    for name in module.state_dict():
        tensors.pop(name, None)
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{prefix}.{name}" if prefix else name] = value
    return tensors
