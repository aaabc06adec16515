"""Stage `source`: load the trained model, and determine its inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from edgepack import data, passes, source
from edgepack.context import Context
from edgepack.errors import ChainError, DataError, SpecError
from edgepack.ledger import Stage
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source.folder_account import (
    FolderAccount,
    describe_folder,
    hash_folder,
    restore_huggingface,
)
from edgepack.source.live import LiveModel, load_live
from edgepack.source.model import Source
from edgepack.spec.tensors import names_of
from edgepack.stages.shapes import check_axes


def load_source(context: Context) -> Source:
    """Load the trained model, without running code from its file unless the user trusts it."""
    request, ledger = context.request, context.ledger
    with ledger.stage("source") as stage:
        model = _load(context, stage)
        summary = f"{model.kind}: {model.parameters:,} parameters"
        if model.weights:
            summary += f"; {model.weights}"
        stage.note(summary)
        for note in model.notes:
            if note != model.weights:
                stage.note(note)
        stage.set(bytes=model.bytes, parameters=model.parameters)
        stage.detail(kind=model.kind, digest=model.digest)
    ledger.warn(*model.warnings)
    check_module(request, model)
    return model


def _load(context: Context, stage: Stage) -> Source:
    request = context.request
    if isinstance(request.model, LiveModel):
        return load_live(request.model)
    # The digest of a folder of transformers is known without loading it, since no code of the user
    # decides its answers. Importing transformers alone takes seconds, for nothing if the later
    # stages are cached. A state dict's network must be built: only its code knows what it reads.
    options = (request.arch, request.arch_args, request.weights, request.strip_prefix)
    if not any(options) and source.recognise(request.model) == "hugging-face":
        return _load_folder(request.model, context, stage)
    return source.load(
        request.model,
        arch=request.arch or None,
        arch_args=request.arch_args,
        trust_pickle=request.trust_pickle,
        search=(request.base,),
        weights=request.weights,
        strip_prefix=request.strip_prefix,
    )


def _load_folder(path: Path, context: Context, stage: Stage) -> Source:
    """Load a Hugging Face folder; defer it if an earlier build has loaded the same files."""
    key = context.cache.key("source", {"files": hash_folder(path), "name": path.name})
    entry = context.cache.get("source", key)
    if entry is not None:
        stage.set(status="cached")
        return restore_huggingface(path, cast("FolderAccount", entry.document))
    model = source.load(path)
    context.cache.put("source", key, {}, {**describe_folder(model)})
    return model


def check_module(request: Request, model: Source) -> None:
    """Refuse passes on the module if the source has none, or one that cannot be changed."""
    steps = passes.select_domain("module", request.chain)
    fixed = not model.has_network or model.program is not None or model.kind == "torchscript"
    if steps and fixed:
        raise ChainError(
            "chain-needs-module",
            f"{steps[0].name} works on a torch module, and {model.path.name} holds none",
            why=f"it is a {model.kind}: a fixed graph",
            hint="use the trained weights with --arch, or a Hugging Face folder",
        )


def resolve_inputs(context: Context, model: Source) -> tuple[Source, tuple[Tensor, ...]]:
    """Determine the inputs: from the request, else from the source, else from the samples.

    Returns:
        The source, and its inputs by position, in the order of its forward's parameters.

    Raises:
        SpecError: inputs-unknown, inputs-differ, axis-unknown.
        SourceError: as `source.bind`.
    """
    inputs = _find_inputs(context.request, model)
    check_axes(context.request, inputs)
    # Binding may add warnings to those that `load_source` has passed on.
    bound, inputs = source.bind(model, inputs)
    for warning in bound.warnings:
        if warning not in model.warnings:
            context.ledger.warn(warning)
    return bound, inputs


def _find_inputs(request: Request, model: Source) -> tuple[Tensor, ...]:
    if request.inputs:
        return _order_inputs(request.inputs, model)
    if model.inputs is not None and not model.optional_inputs:
        return model.inputs
    # The arrays of a sample name the inputs and show their types and sizes.
    inferred = None
    for spec in (request.evaluation, request.calibration):
        if spec and not inferred:
            inferred = data.infer_inputs(spec, search=request.base, names=_name_inputs(model))
    if model.inputs is not None:
        return _drop_unused(model, inferred)
    if inferred is not None:
        _refuse_two_types(request, model, inferred)
        return inferred
    example = "image:float32:batch,3,224,224"
    if request.audio is not None:
        example = "waveform:float32:batch,1,16000, or batch,samples without an axis of channels"
    elif isinstance(request.preprocessing, data.Picture):
        example = _picture_input(request.preprocessing, _name_inputs(model))
    raise SpecError(
        "inputs-unknown",
        "the model's inputs are unknown",
        why=f"a {model.kind} does not define them, and no samples show them",
        hint=f"--input name:dtype:dims, for example --input {example}",
    )


def _refuse_two_types(request: Request, model: Source, inferred: Sequence[Tensor]) -> None:
    """Refuse calibration samples of another element type than those of the evaluation.

    Neither is the model's, so that "the model takes float64" would blame the wrong samples.
    """
    if not (request.evaluation and request.calibration):
        return
    names = _name_inputs(model)
    try:
        others = data.infer_inputs(request.calibration, search=request.base, names=names)
    except DataError:
        # They are read later, with the inputs known, and may be clear then.
        return
    types = {tensor.name: tensor.dtype for tensor in others or ()}
    for tensor in inferred:
        other = types.get(tensor.name, tensor.dtype)
        if np.dtype(other).kind == np.dtype(tensor.dtype).kind == "f" and other != tensor.dtype:
            raise DataError(
                "samples-types-differ",
                f"the samples differ in the element type of {tensor.name}",
                why=f"calibration: {other}; evaluation: {tensor.dtype}",
                hint="convert one of them: array.astype('float32'); or declare the input: "
                f"--input {replace(tensor, dtype='float32')}",
            )


def _picture_input(picture: data.Picture, names: tuple[str, ...]) -> str:
    """Return the input that a conversion of pictures fills, as `--input` states it."""
    # letterbox=64 and colour=rgb fill image:float32:batch,3,64,64.
    size = picture.letterbox or picture.crop or picture.resize or 224
    sides = (size, size) if isinstance(size, int) else size
    channels = 1 if picture.colour == "grey" else 3
    shape = (channels, *sides) if picture.layout == "nchw" else (*sides, channels)
    name = names[0] if names else "image"
    return f"{name}:float32:batch,{','.join(map(str, shape))}"


def _name_inputs(model: Source) -> tuple[str, ...]:
    """Return the names of the model's inputs, for samples without names; empty for unknown."""
    if model.inputs is not None:
        return names_of(model.inputs)
    network = model.network
    if network is None:
        return ()
    return source.name_parameters(network)


def _drop_unused(model: Source, inferred: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Return the source's inputs without the optional ones that the samples have no array for."""
    inputs = model.inputs or ()
    # A single array belongs to a single input, whatever its name.
    if inferred is None or len(inferred) == len(inputs) == 1:
        return inputs
    # A text model with optional token_type_ids, and samples of input_ids and attention_mask alone,
    # has these two inputs.
    return _select_inputs(model, {tensor.name for tensor in inferred})


def _select_inputs(model: Source, names: Collection[str]) -> tuple[Tensor, ...]:
    """Return the source's inputs without the optional ones that are not among the names."""
    selected = []
    for tensor in model.inputs or ():
        if tensor.name in names or tensor.name not in model.optional_inputs:
            selected.append(tensor)
    return tuple(selected)


def _order_inputs(declared: tuple[Tensor, ...], model: Source) -> tuple[Tensor, ...]:
    if model.inputs is None:
        return declared
    by_name = {tensor.name: tensor for tensor in declared}
    names = [tensor.name for tensor in _select_inputs(model, by_name)]
    # A name that the request repeats shows in the number alone.
    if sorted(by_name) != sorted(names) or len(declared) != len(names):
        raise SpecError(
            "inputs-differ",
            "the inputs of the request are not the model's",
            why=f"requested: {', '.join(map(str, declared))}\nthe model's: "
            f"{', '.join(map(str, model.inputs))}",
            hint="remove --input, or name each of the model's inputs",
        )
    if model.onnx is not None:
        for tensor in model.inputs:
            _check_fits(by_name[tensor.name], tensor)
    return tuple(by_name[name] for name in names)


def _check_fits(declared: Tensor, tensor: Tensor) -> None:
    """Refuse inputs that the fixed graph of an ONNX file cannot take."""
    fits = (declared.dtype, declared.rank) == (tensor.dtype, tensor.rank)
    if fits:
        # A fixed axis of the file takes its own size alone; a dynamic one, named, any.
        for size, declared_size in zip(tensor.shape, declared.shape, strict=True):
            if not isinstance(size, str) and size != declared_size:
                fits = False
    if not fits:
        raise SpecError(
            "inputs-differ",
            "the inputs of the request are not the model's",
            why=f"requested: {declared}\nthe model's: {tensor}",
            hint="remove --input, or export the network with these types and axes",
        )
