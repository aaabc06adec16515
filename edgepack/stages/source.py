"""Stage `source`: the trained model comes in, and its inputs are settled."""

from __future__ import annotations

from pathlib import Path

from edgepack import chain, data, source
from edgepack.errors import ChainError, SpecError
from edgepack.ledger import Ledger
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.stages.shapes import check_axes


def load_source(request: Request, ledger: Ledger) -> Source:
    """Take the trained model in, safely."""
    with ledger.stage("source") as stage:
        found = source.load(
            request.model,
            arch=request.arch or None,
            arch_args=request.arch_args,
            trust_pickle=request.trust_pickle,
            search=(request.base,),
            weights=request.weights,
            strip_prefix=request.strip_prefix,
        )
        account = f"; {found.weights}" if found.weights else ""
        further = [note for note in found.notes if note != found.weights]
        stage.note(f"{found.kind}: {found.parameters:,} parameters{account}", *further)
        stage.set(bytes=found.bytes, parameters=found.parameters)
        stage.detail(kind=found.kind, digest=found.digest)
    ledger.warn(*found.warnings)
    _check_module(request, found)
    return found


def _check_module(request: Request, found: Source) -> None:
    """Refuse passes on the module where the source has none that can be changed."""
    steps = chain.of_domain("module", request.chain)
    fixed = found.module is None or found.program is not None or found.kind == "torchscript"
    if steps and fixed:
        raise ChainError(
            "chain-needs-module",
            f"{steps[0].name} works on a torch module, and {found.path.name} holds none",
            why=f"it is a {found.kind}: a graph that is fixed already",
            hint="give the trained weights with --arch, or a Hugging Face folder",
        )


def settle_inputs(
    request: Request, found: Source, ledger: Ledger
) -> tuple[Source, tuple[Tensor, ...]]:
    """Settle the inputs: as stated, else as the source tells, else as the samples show.

    Returns:
        The source, which takes them by position in the order of the second value; the names of
        its forward's parameters decide the order.

    Raises:
        SpecError: inputs-unknown, inputs-differ, axis-unknown.
        SourceError: as `source.bind`.
    """
    inputs = _inputs(request, found)
    check_axes(request, inputs)
    bound, inputs = source.bind(found, inputs)
    ledger.warn(*(warning for warning in bound.warnings if warning not in found.warnings))
    return bound, inputs


def _inputs(request: Request, found: Source) -> tuple[Tensor, ...]:
    if request.inputs:
        return _in_source_order(request.inputs, found)
    if found.inputs is not None and not found.optional_inputs:
        return found.inputs
    inferred = None
    for spec in (request.evaluation, request.calibration):
        inferred = inferred or (data.infer_inputs(spec, Path()) if spec else None)
    if found.inputs is not None:
        return _without_unused(found, inferred)
    if inferred is not None:
        return inferred
    raise SpecError(
        "inputs-unknown",
        "the model's inputs are not known",
        why=f"a {found.kind} does not tell them, and no samples show them",
        hint="--input name:dtype:dims, for example --input image:float32:batch,3,224,224",
    )


def _without_unused(found: Source, inferred: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Return the source's inputs without the optional ones that the samples have no array for."""
    own = found.inputs or ()
    if inferred is None or len(inferred) == len(own) == 1:
        return own
    names = {tensor.name for tensor in inferred}
    return tuple(t for t in own if t.name in names or t.name not in found.optional_inputs)


def _in_source_order(stated: tuple[Tensor, ...], found: Source) -> tuple[Tensor, ...]:
    if found.inputs is None:
        return stated
    by_name = {tensor.name: tensor for tensor in stated}
    names = [
        tensor.name
        for tensor in found.inputs
        if tensor.name in by_name or tensor.name not in found.optional_inputs
    ]
    if sorted(by_name) != sorted(names) or len(stated) != len(names):
        raise SpecError(
            "inputs-differ",
            "the stated inputs are not the model's",
            why=f"stated: {', '.join(map(str, stated))}\nthe model's: "
            f"{', '.join(map(str, found.inputs))}",
            hint="remove --input, or name each of the model's inputs",
        )
    if found.onnx is not None:
        for own in found.inputs:
            _check_fits(by_name[own.name], own)
    return tuple(by_name[name] for name in names)


def _check_fits(stated: Tensor, own: Tensor) -> None:
    """Refuse what a graph that is fixed already cannot take."""
    fits = (stated.dtype, stated.rank) == (own.dtype, own.rank) and all(
        isinstance(size, str) or size == wanted
        for size, wanted in zip(own.shape, stated.shape, strict=True)
    )
    if not fits:
        raise SpecError(
            "inputs-differ",
            "the inputs that were stated are not the model's",
            why=f"stated: {stated}\nthe model's: {own}",
            hint="leave --input out, or export the network with the types and axes that are wanted",
        )
