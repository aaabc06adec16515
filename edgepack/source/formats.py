"""Formats of trained models: edgepack's own, and those of installed plug-ins.

A format detects a model by its contents and loads it. Another distribution adds one in the group
`edgepack.sources` of its entry points (see `edgepack.plugins`). Plug-ins are asked only about
models that edgepack does not recognise, so that none of them takes over a format of edgepack's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol, cast

from edgepack import plugins
from edgepack.errors import SourceError
from edgepack.plugins import Plugin, is_callable, is_text
from edgepack.source.model import Source
from edgepack.source.recognise import recognise as recognise_own

# Errors of models that edgepack does not recognise, and a plug-in might.
_UNKNOWN = ("source-unknown", "source-folder", "source-pickle")


@dataclass(frozen=True)
class LoadOptions:
    """Options of loading a model; all but `search` are for weights without their network.

    Attributes:
        arch: for a state dict, the factory that builds its network: "package.module:function"
            or "path/to/file.py:function".
        arch_args: the factory's keyword arguments.
        trust_pickle: allow a pickled module, or a TorchScript archive, to run its code.
        search: folders on the import path while the factory runs, besides the current one;
            relative paths in `arch` are resolved against them too.
        weights: the checkpoint's key that holds the weights; "" for the usual keys.
        strip_prefix: prefix to remove from the names of a checkpoint's weights.
    """

    arch: str | None = None
    arch_args: Mapping[str, object] = field(default_factory=dict)
    trust_pickle: bool = False
    search: tuple[Path, ...] = ()
    weights: str = ""
    strip_prefix: str = ""


class SourceFormat(Protocol):
    """Format of a trained model."""

    @property
    def name(self) -> str:
        """Name of the format, such as "onnx"."""

    @property
    def description(self) -> str:
        """Description of a model of the format for messages, such as "an ONNX file"."""

    @property
    def takes_network(self) -> bool:
        """True if the file holds weights alone, whose network `--arch` builds."""

    def detect(self, path: Path) -> bool:
        """Return True if the file or folder is of the format. It must not run code of the file."""

    def load(self, path: Path, options: LoadOptions) -> Source:
        """Load the model, in eval mode, on the CPU. Raises SourceError."""


@dataclass(frozen=True)
class _OwnFormat:
    """Format of edgepack's own; its loader is imported on first use.

    An ONNX file must load on a host without torch.
    """

    name: str
    description: str
    loader: Callable[[str, Path, LoadOptions], Source]
    takes_network: bool = False

    def detect(self, path: Path) -> bool:
        return recognise_own(path) == self.name

    def load(self, path: Path, options: LoadOptions) -> Source:
        return self.loader(self.name, path, options)


def _load_checkpoint(name: str, path: Path, options: LoadOptions) -> Source:
    from edgepack.source.checkpoint import load_checkpoint

    return load_checkpoint(
        path,
        name,
        arch=options.arch,
        arch_args=options.arch_args,
        trust_pickle=options.trust_pickle,
        search=options.search,
        weights=options.weights,
        strip_prefix=options.strip_prefix,
    )


def _load_exported(name: str, path: Path, options: LoadOptions) -> Source:
    from edgepack.source.exported import load_exported

    return load_exported(path)


def _load_torchscript(name: str, path: Path, options: LoadOptions) -> Source:
    from edgepack.source.pickled import load_torchscript

    return load_torchscript(path, trust_pickle=options.trust_pickle)


def _load_onnx(name: str, path: Path, options: LoadOptions) -> Source:
    from edgepack.source.onnx_file import load_onnx

    return load_onnx(path)


def _load_huggingface(name: str, path: Path, options: LoadOptions) -> Source:
    from edgepack.source.huggingface import load_huggingface

    return load_huggingface(path)


_OWN: tuple[SourceFormat, ...] = (
    _OwnFormat("checkpoint", "a checkpoint", _load_checkpoint, takes_network=True),
    _OwnFormat("safetensors", "a safetensors file", _load_checkpoint, takes_network=True),
    _OwnFormat("sharded-checkpoint", "a sharded checkpoint", _load_checkpoint, takes_network=True),
    _OwnFormat("exported-program", "a torch.export program", _load_exported),
    _OwnFormat("torchscript", "a TorchScript archive", _load_torchscript),
    _OwnFormat("onnx", "an ONNX file", _load_onnx),
    _OwnFormat("hugging-face", "a Hugging Face folder", _load_huggingface),
)
FORMATS: dict[str, SourceFormat] = {form.name: form for form in _OWN}
# `Source.kind` has further names for what a checkpoint holds.
_KINDS = ("state-dict", "pickled-module")


def find_plugin(name: str) -> Plugin | None:
    """Return the plug-in that defines a format; None for one of edgepack's own, or none."""
    return _list_plugins().get(name)


def recognise(path: Path) -> str:
    """Return the name of the format of the model at `path`.

    Raises:
        SourceError: those of `recognise.recognise`, if no plug-in recognises the model either.
        PluginError: a plug-in cannot be used.
    """
    try:
        return recognise_own(path)
    except SourceError as error:
        if error.code not in _UNKNOWN:
            raise
        for name, plugin in _list_plugins().items():
            form = _load(plugin)
            with plugins.attribute_faults(plugin):
                detected = form.detect(path)
            if detected:
                return name
        raise


def find_format(name: str) -> SourceFormat:
    """Return a format by name. Raises KeyError if there is none, PluginError if it is broken."""
    plugin = find_plugin(name)
    if plugin is None:
        return FORMATS[name]
    return _load(plugin)


def load_format(name: str, path: Path, options: LoadOptions) -> Source:
    """Load a model of a format. Raises SourceError, and PluginError for a plug-in's fault."""
    plugin = find_plugin(name)
    form = find_format(name)
    with plugins.attribute_faults(plugin):
        source = form.load(path, options)
    if plugin is None:
        return source
    return replace(source, path=path, kind=name, notes=(*source.notes, *plugins.credit(plugin)))


def _list_plugins() -> Mapping[str, Plugin]:
    return plugins.list_plugins(plugins.SOURCES, (*FORMATS, *_KINDS))


# Loaded once: the import of a plug-in may be slow, and each model is recognised several times.
@cache
def _load(plugin: Plugin) -> SourceFormat:
    members = {
        "name": lambda name: name == plugin.name,
        "description": is_text,
        "takes_network": lambda value: isinstance(value, bool),
        "detect": is_callable,
        "load": is_callable,
    }
    return cast("SourceFormat", plugin.load(members))
