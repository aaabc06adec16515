"""Load a trained model safely; its format is detected from its contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgepack.errors import SourceError
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.source.recognise import Format, recognise

_WORDS: dict[Format, str] = {
    "exported-program": "a torch.export program",
    "torchscript": "a TorchScript archive",
    "onnx": "an ONNX file",
    "hugging-face": "a Hugging Face folder",
}


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
        SourceError: the codes are listed at `recognise` and at each format's loader.
        HostError: package-missing.
    """
    form = recognise(path)
    # Each loader is imported late: an ONNX file must load on a host without torch.
    if form in ("checkpoint", "safetensors", "sharded-checkpoint"):
        from edgepack.source.checkpoint import load_checkpoint

        return load_checkpoint(
            path,
            form,
            arch=arch,
            arch_args=arch_args or {},
            trust_pickle=trust_pickle,
            search=search,
            weights=weights,
            strip_prefix=strip_prefix,
        )
    if arch is not None or arch_args:
        option = f"--arch {arch}" if arch else "--arch-arg"
        raise SourceError(
            "source-arch-unneeded",
            f"{path.name} is {_WORDS[form]}, which brings its own network",
            why=f"{option} was given",
            hint="remove --arch and --arch-arg" + _weights_file(path),
        )
    if weights or strip_prefix:
        option = "--weights" if weights else "--strip-prefix"
        raise SourceError(
            "source-weights-unneeded",
            f"{path.name} is {_WORDS[form]}; its weights cannot be selected",
            why=f"{option} is for checkpoints and state dicts",
            hint=f"remove {option}",
        )
    if form == "exported-program":
        from edgepack.source.exported import load_exported

        return load_exported(path)
    if form == "torchscript":
        from edgepack.source.pickled import load_torchscript

        return load_torchscript(path, trust_pickle=trust_pickle)
    if form == "onnx":
        from edgepack.source.onnx_file import load_onnx

        return load_onnx(path)
    from edgepack.source.huggingface import load_huggingface

    return load_huggingface(path)


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
    if source.module is None or source.program is not None:
        return source, inputs
    from edgepack.source.binding import (
        bind_inputs,
        describe_defaults,
        describe_renamed,
        select_inputs,
    )
    from edgepack.source.eager import torch_run

    names = tuple(tensor.name for tensor in inputs)
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


def _dropped(source: Source, names: tuple[str, ...]) -> str:
    """Return the note on optional inputs that are not fed; "" if there are none."""
    dropped = [name for name in source.optional_inputs if name not in names]
    if not dropped:
        return ""
    return f"optional inputs of the model without samples keep their defaults: {', '.join(dropped)}"


__all__ = ["Format", "Source", "bind", "load", "recognise"]
