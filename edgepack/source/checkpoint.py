"""Load a state dict into the network that its factory builds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError, missing_package
from edgepack.listing import join_names
from edgepack.source.digest import Digest
from edgepack.source.eager import flatten_outputs
from edgepack.source.factory import importable
from edgepack.source.hooks import fix_normalized_weights, set_export_mode
from edgepack.source.model import Source
from edgepack.source.network import build_network
from edgepack.source.pickled import code_names, from_pickle, module_source, refuse_pickle
from edgepack.source.recognise import recognise
from edgepack.source.shards import by_name, list_shards
from edgepack.source.states import (
    LISTED,
    Selection,
    State,
    list_states,
    narrow,
    prefer,
    require_states,
    select,
)
from edgepack.source.torch_host import import_torch
from edgepack.source.weights import load_state, refuse_nested
from edgepack.source.weights_digest import hash_weights

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import nn


@dataclass(frozen=True)
class WeightOptions:
    """Options of the user for reading a checkpoint.

    Attributes:
        arch: the factory; None only for a pickled module.
        arch_args: the factory's keyword arguments.
        trust_pickle: allow code from the file, if it holds more than weights.
        search: folders that are searched for the factory.
        key: path of the weights in the checkpoint; "" for the usual keys.
        strip_prefix: prefix to remove from every name; "" for the usual prefixes.
    """

    arch: str | None
    arch_args: Mapping[str, object]
    trust_pickle: bool = False
    search: tuple[Path, ...] = ()
    key: str = ""
    strip_prefix: str = ""


def load_checkpoint(
    path: Path,
    form: str,
    *,
    arch: str | None,
    arch_args: Mapping[str, object],
    trust_pickle: bool,
    search: tuple[Path, ...],
    weights: str = "",
    strip_prefix: str = "",
) -> Source:
    """Load a file written by `torch.save` or safetensors.

    Args:
        path: the file.
        form: "checkpoint", "safetensors" or "sharded-checkpoint", as `recognise` returned.
        arch: as `WeightOptions`, like the others.
        arch_args: see there.
        trust_pickle: see there.
        search: see there.
        weights: its `key`.
        strip_prefix: see there.

    Raises:
        SourceError: source-pickled-module, source-corrupt, source-no-weights,
            source-arch-required, source-arch-unneeded, source-weights-unneeded,
            source-weights-key, source-weights-ambiguous, source-strip-prefix, and those of the
            factory and of the weights.
    """
    torch = import_torch("A state dict")
    options = WeightOptions(arch, arch_args, trust_pickle, search, weights, strip_prefix)
    shards: tuple[Path, ...] = ()
    content: object
    if form == "sharded-checkpoint":
        shards = list_shards(path)
        content, trusted = _read_shards(torch, shards, options)
    else:
        content, trusted = _read(torch, path, form, options)
    if isinstance(content, torch.nn.Module):
        _refuse_options(path, content, options)
        return from_pickle(path, content)
    states = list_states(content)
    require_states(path, content, states)
    if options.key:
        states = narrow(path, states, options.key)
    if arch is None:
        return _load_module(path, states, options)
    return _load_state_dict(torch, path, states, options, trusted, shards)


def _load_state_dict(
    torch: ModuleType,
    path: Path,
    states: list[State],
    options: WeightOptions,
    trusted: bool,
    shards: tuple[Path, ...],
) -> Source:
    """Build the network, and fill it with the weights that fit."""
    for state in states:
        refuse_nested(path, state.tensors)
    arch = str(options.arch)
    module, code_digest, built = build_network(torch, arch, options.arch_args, options.search)
    selection = select(path, states, module.state_dict(keep_vars=True), options.strip_prefix)
    notes = load_state(path, module, selection.tensors)
    notes += fix_normalized_weights(module)
    notes += set_export_mode(module)
    notes += built
    weights_digest = hash_weights(module)
    module.register_forward_hook(flatten_outputs)
    # The same weights under another key, or for another width of the network, are another model.
    # The folder of the factory's file does not matter, so only the function's name counts.
    digest = Digest("state-dict")
    digest.file("weights", path)
    digest.files("shard", by_name(shards))
    digest.json("taken", {"key": selection.key, "prefix": selection.prefix})
    digest.text("arch", arch.rpartition(":")[2])
    digest.json("arch-args", dict(options.arch_args))
    digest.text("code", code_digest)
    source = module_source(
        path,
        "state-dict",
        digest.hexdigest(),
        module,
        trusted=trusted,
        notes=tuple(notes),
        selection=selection,
        shards=shards,
    )
    return replace(source, weights_digest=weights_digest)


def _load_module(path: Path, states: list[State], options: WeightOptions) -> Source:
    """Load the module inside a trusted checkpoint, as Ultralytics saves it."""
    # {"epoch": 300, "model": <DetectionModel>, "ema": <DetectionModel>} gives two modules, and
    # `prefer` takes the averaged one.
    modules = [state for state in states if state.module is not None]
    if not modules:
        entries = [f"{state.key or 'the file'} ({len(state.tensors)} tensors)" for state in states]
        raise SourceError(
            "source-arch-required",
            f"{path.name} holds only weights; the code of the network is needed too",
            why=f"weights: {join_names(entries, LISTED)}; their names: "
            f"{', '.join(list(states[0].tensors)[:3])}, ...",
            hint="--arch package.module:factory, or --arch path/to/file.py:factory",
        )
    preferred = prefer(path, modules)
    if options.strip_prefix:
        _refuse_options(path, preferred.module, options)
    others = tuple(state.key for state in modules if state is not preferred)
    selection = Selection(preferred.key, "", {}, preferred.beside, others=others)
    return from_pickle(path, preferred.module, selection)


def _refuse_options(path: Path, module: nn.Module, options: WeightOptions) -> None:
    """Refuse options on weights for a file that holds a pickled module."""
    kind = type(module).__qualname__
    if options.arch is not None:
        raise SourceError(
            "source-arch-unneeded",
            f"{path.name} holds a pickled module; --arch does not apply",
            why=f"it is a {kind}, and --arch {options.arch} was given",
            hint="remove --arch, or save the state dict alone and use that file",
        )
    if options.key or options.strip_prefix:
        option = "--strip-prefix" if options.strip_prefix else "--weights"
        raise SourceError(
            "source-weights-unneeded",
            f"{path.name} holds a pickled module; its weights cannot be selected",
            why=f"it is a {kind}, and {option} was given",
            hint=f"remove {option}",
        )


def _read(torch: ModuleType, path: Path, form: str, options: WeightOptions) -> tuple[object, bool]:
    """Return the content of a file, and True if code of it was allowed to run."""
    if form == "safetensors":
        return _read_safetensors(path), False
    return _read_torch(torch, path, options)


def _read_shards(
    torch: ModuleType, shards: tuple[Path, ...], options: WeightOptions
) -> tuple[dict[str, object], bool]:
    """Return the tensors of all shards, and True if code of one was allowed to run."""
    tensors: dict[str, object] = {}
    trusted = False
    for shard in shards:
        form = recognise(shard)
        content, ran = _read(torch, shard, form, options)
        # A shard is a plain dict of tensors, so only its top level counts.
        states = [state for state in list_states(content) if not state.key]
        require_states(shard, content, states)
        tensors.update(states[0].tensors)
        trusted = trusted or ran
    return tensors, trusted


def _read_torch(torch: ModuleType, path: Path, options: WeightOptions) -> tuple[object, bool]:
    """Return the object that torch.save wrote, and True if its code was allowed to run."""
    # torch raises UnpicklingError for a name that `weights_only` does not allow, and for a file
    # that is not a pickle. The names in the pickle tell the two apart.
    try:
        return torch.load(path, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        names = code_names(path)
        if not names:
            raise _corrupt(path, error) from error
        if not options.trust_pickle:
            raise refuse_pickle(path, names) from error
    except Exception as error:  # torch passes on any exception of its parsers
        raise _corrupt(path, error) from error
    try:
        with importable(options.search):
            return torch.load(path, map_location="cpu", weights_only=False), True
    except Exception as error:
        hint = "the classes that it names must be importable from the current folder"
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            hint = f"pip install {package}, or run edgepack in the folder of {package}"
        raise SourceError(
            "source-pickle-failed",
            f"{path.name} cannot be unpickled, even with --trust-pickle",
            why=f"{type(error).__name__}: {error}",
            hint=hint,
        ) from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
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
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return SourceError(
        "source-corrupt",
        f"{path.name} cannot be read",
        why=lines[0],
        hint="copy or download it again, or save it again",
    )
