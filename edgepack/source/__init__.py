"""Load a trained model safely; its format is detected from its contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.runtime.tensor import Tensor
from edgepack.source.formats import (
    FORMATS,
    LoadOptions,
    SourceFormat,
    find_format,
    find_plugin,
    load_format,
    recognise,
)
from edgepack.source.model import Source
from edgepack.spec.tensors import names_of

if TYPE_CHECKING:
    from torch import nn


def load(
    path: Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    trust_pickle: bool = False,
    search: tuple[Path, ...] = (),
    weights: str = "",
    strip_prefix: str = "",
) -> Source:
    """Load a trained model of any supported format.

    Args:
        path: a file or a folder.
        arch: for a state dict, the factory that builds its network: "package.module:function"
            or "path/to/file.py:function".
        arch_args: the factory's keyword arguments.
        trust_pickle: allow a pickled module, or a TorchScript archive, to run its code.
        search: folders on the import path while the factory runs, besides the current one;
            relative paths in `arch` are resolved against them too.
        weights: the checkpoint's key that holds the weights; "" for the usual keys.
        strip_prefix: prefix to remove from the names of a checkpoint's weights.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        SourceError: the codes are listed at `recognise.recognise` and at each format's loader.
        HostError: package-missing.
    """
    name = recognise(path)
    options = LoadOptions(arch, arch_args or {}, trust_pickle, search, weights, strip_prefix)
    form = find_format(name)
    if not form.takes_network:
        _refuse_network(path, form.description, options)
    return load_format(name, path, options)


def _refuse_network(path: Path, description: str, options: LoadOptions) -> None:
    """Refuse options for weights without a network, for a model that brings its own."""
    if options.arch is not None or options.arch_args:
        option = f"--arch {options.arch}" if options.arch else "--arch-arg"
        raise SourceError(
            "source-arch-unneeded",
            f"{path.name} is {description}, which brings its own network",
            why=f"{option} was given",
            hint="remove --arch and --arch-arg" + _weights_file(path),
        )
    if options.weights or options.strip_prefix:
        option = "--weights" if options.weights else "--strip-prefix"
        raise SourceError(
            "source-weights-unneeded",
            f"{path.name} is {description}; its weights cannot be selected",
            why=f"{option} is for checkpoints and state dicts",
            hint=f"remove {option}",
        )


def _weights_file(folder: Path) -> str:
    """Return a hint that names the weights file of a folder, for use with --arch."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return f", or give {folder / name} in place of the folder"
    return ""


def bind(source: Source, inputs: tuple[Tensor, ...]) -> tuple[Source, tuple[Tensor, ...]]:
    """Bind the inputs of a model to the parameters of its forward, by name.

    Returns:
        The source, whose module takes its inputs by position in the order of the second value.

    Raises:
        SourceError: source-inputs-unmatched, source-inputs-missing.
    """
    if not source.has_network or source.program is not None:
        return source, inputs
    if source.deferred is not None:
        return _bind_later(source, source.deferred, inputs), inputs
    if source.module is None:
        return source, inputs
    from edgepack.source.binding import (
        bind_inputs,
        describe_defaults,
        describe_renamed,
        select_inputs,
    )
    from edgepack.source.eager import torch_run

    # forward(self, image, scale=None) with samples that hold "scale" before "image": the module
    # and the inputs are put in the order (image, scale), and every pass feeds them by position.
    names = names_of(inputs)
    # A network whose file defines its inputs takes them in this order; some may be left out.
    if source.inputs is not None:
        module, notes = select_inputs(source.module, names), [_dropped(source, names)]
    else:
        module, binding = bind_inputs(source.module, names)
        notes = [describe_renamed(binding), describe_defaults(binding)]
        by_name = {tensor.name: tensor for tensor in inputs}
        inputs = tuple(by_name[name] for name in binding.order)
    warnings = (*source.warnings, *filter(None, notes))
    bound = replace(
        source, module=module, inputs=inputs, run=torch_run(module, inputs), warnings=warnings
    )
    return bound, inputs


def _bind_later(
    source: Source, load_source: Callable[[], Source], inputs: tuple[Tensor, ...]
) -> Source:
    """Return a source that is bound when it is loaded; its file defines its inputs."""

    @cache
    def load_bound() -> Source:
        return bind(load_source(), inputs)[0]

    dropped = _dropped(source, names_of(inputs))
    return replace(
        source,
        inputs=inputs,
        deferred=load_bound,
        run=lambda feeds: load_bound().run(feeds),
        warnings=(*source.warnings, *filter(None, [dropped])),
    )


def name_parameters(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a module's forward that take an input each."""
    from edgepack.source.binding import list_parameters

    return list_parameters(module)


def _dropped(source: Source, names: tuple[str, ...]) -> str:
    """Return the note on optional inputs that are not fed; "" if there are none."""
    dropped = [name for name in source.optional_inputs if name not in names]
    if not dropped:
        return ""
    return f"optional inputs of the model without samples keep their defaults: {', '.join(dropped)}"


__all__ = [
    "FORMATS",
    "LoadOptions",
    "Source",
    "SourceFormat",
    "bind",
    "find_format",
    "find_plugin",
    "load",
    "name_parameters",
    "recognise",
]
