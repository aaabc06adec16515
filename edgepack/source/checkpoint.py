"""A state dict, and the factory that builds the network it belongs to."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError, missing_package
from edgepack.source.digest import Digest
from edgepack.source.eager import flatten_outputs
from edgepack.source.model import Source
from edgepack.source.network import build_network
from edgepack.source.pickled import code_names, from_pickle, module_source, refuse_pickle
from edgepack.source.torch_host import import_torch
from edgepack.source.weights import load_state, unwrap


def load_checkpoint(
    path: Path,
    form: str,
    *,
    arch: str | None,
    arch_args: Mapping[str, Any],
    trust_pickle: bool,
    search: tuple[Path, ...],
) -> Source:
    """The source for what `torch.save` or safetensors wrote.

    Args:
        path: the file.
        form: "checkpoint" or "safetensors", as it was recognised.
        arch: the factory; None only for a whole pickled module.
        arch_args: the factory's keyword arguments.
        trust_pickle: allow code from the file, where weights alone cannot be had.
        search: folders that the factory is looked for in.

    Raises:
        SourceError: source-pickled-module, source-corrupt, source-no-weights,
            source-arch-missing-option, source-arch-unneeded, and those of the factory and of
            the weights.
    """
    torch = import_torch("A state dict")
    if form == "safetensors":
        content, trusted = _read_safetensors(path), False
    else:
        content, trusted = _read_torch(torch, path, trust_pickle)
    if isinstance(content, torch.nn.Module):
        if arch is not None:
            raise SourceError(
                "source-arch-unneeded",
                f"{path.name} holds a whole module; --arch has no use",
                why=f"it is a {type(content).__qualname__}, and --arch {arch} was given",
                hint="leave --arch away, or save its state dict and give that",
            )
        return from_pickle(path, content)
    state, notes = unwrap(path, content)
    if arch is None:
        raise SourceError(
            "source-arch-required",
            f"{path.name} holds weights alone: the code of the network is needed too",
            why=f"{len(state)} tensors: {', '.join(list(state)[:3])}, ...",
            hint="--arch package.module:factory, or --arch path/to/file.py:factory",
        )
    module, code_digest, built = build_network(torch, arch, arch_args, search)
    notes += load_state(path, module, state)
    notes += built
    module.register_forward_hook(flatten_outputs)
    digest = Digest("state-dict")
    digest.file("weights", path)
    digest.text("arch", arch.rpartition(":")[2])
    digest.json("arch-args", dict(arch_args))
    digest.text("code", code_digest)
    return module_source(
        path,
        "state-dict",
        digest.hexdigest(),
        module,
        trusted=trusted,
        notes=tuple(notes),
    )


def _read_torch(torch: Any, path: Path, trust_pickle: bool) -> tuple[Any, bool]:
    """What torch.save wrote, and whether code of it was allowed to run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        names = code_names(path)
        if not names:
            raise _corrupt(path, error) from error
        if not trust_pickle:
            raise refuse_pickle(path, names) from error
    except Exception as error:  # torch raises whatever its parsers of a broken file meet
        raise _corrupt(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False), True
    except Exception as error:
        raise SourceError(
            "source-pickle-failed",
            f"{path.name} was trusted, and cannot be unpickled",
            why=f"{type(error).__name__}: {error}",
            hint="the classes that it names must be importable from the current folder",
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise missing_package("safetensors", "torch", "A safetensors file") from error
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> SourceError:
    return SourceError(
        "source-corrupt",
        f"{path.name} cannot be read",
        why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        hint="copy or download it again, or save it again",
    )
