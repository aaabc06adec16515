"""The passes on the torch module: each gives another source, exported and measured at once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack import chain, files
from edgepack.cache import Cache, digest
from edgepack.chain.module import Context, ModuleResult
from edgepack.chain.training import processes
from edgepack.errors import ChainError
from edgepack.ledger import Ledger, Stage
from edgepack.source.eager import count_parameters, torch_run
from edgepack.source.model import Source
from edgepack.source.torch_host import import_torch
from edgepack.source.weights import load_state
from edgepack.stages.code import UserCode
from edgepack.stages.given import Given, Graph
from edgepack.stages.graph import export_again
from edgepack.stages.kept import document_of, write_down
from edgepack.stages.measure import measure

WEIGHTS = "weights.safetensors"
# How far the answers of a replayed module may lie from those of the one that the pass made, of
# the largest value: rounding alone.
REPLAY_TOLERANCE = 1e-5


def apply_module(
    step: chain.Step, before: Source, given: Given, cache: Cache, ledger: Ledger
) -> tuple[Source, Graph]:
    """Apply one pass on the module; the source that it gives, and that one's graph.

    In the helping processes of a training nothing is exported: the graph is the original's.

    Raises what the pass and the export raise; ChainError `chain-replay` where the pass's recipe
    does not give the module that the pass made.
    """
    torch = import_torch(f"The pass {step.name}")
    options = step.read()
    code = UserCode(
        torch,
        (given.request.base,),
        step.name,
        inputs=tuple(tensor.name for tensor in given.inputs),
        outputs=tuple(tensor.name for tensor in given.original.outputs),
    )
    with ledger.stage(step.name) as stage:
        key = cache.key(step.name, _parts(step, options, before, given, code))
        module, document, weights = _through_cache(
            step, options, before, given, code, key, cache, stage
        )
        write_down(document, stage)
        found = replace(
            before,
            digest=digest({"before": before.key, "recipe": document["recipe"],
                           "weights": hashlib.sha256(weights).hexdigest()}),
            identity="",
            module=module,
            run=torch_run(module, given.inputs),
            parameters=count_parameters(module),
            bytes=len(weights),
        )  # fmt: skip
        if not processes.is_main():
            return found, given.original
        request, reference = given.request, given.reference
        for_passes = bool(chain.of_domain("graph", request.chain))
        graph, notes = export_again(
            found, given.inputs, given.original, request.target.opset, for_passes, reference, cache
        )
        # How it was exported was said of the original already, unless it is another way now.
        stage.note(*(note for note in notes if note not in _notes_of(ledger, "export")))
        measure(graph, given, cache, ledger, stage)
    return found, graph


def _notes_of(ledger: Ledger, stage: str) -> set[str]:
    return {note for record in ledger.records if record.stage == stage for note in record.notes}


def _parts(
    step: chain.Step, options: Any, before: Source, given: Given, code: UserCode
) -> dict[str, Any]:
    """What the result of a pass depends on."""
    needs = options.needs
    example = given.reference.feeds[0]
    digests = given.samples.lint.digests
    return {
        "source": before.key,
        "original": given.source.key,
        "inputs": [tensor.to_json() for tensor in given.inputs],
        "outputs": [tensor.to_json() for tensor in given.original.outputs],
        "example": {name: list(array.shape) for name, array in example.items()},
        "options": dict(step.options),
        "code": [[spec, code.digest(spec, arguments)] for spec, arguments in options.code],
        "samples": {role: found for role, found in digests.items() if role in needs},
        "gates": dict(given.request.quality) if "gates" in needs else {},
        "quantize": dict(_quantize(given).options) if "quantize" in needs else {},
        "environment": processes.environment() if "training" in needs else {},
    }


def _through_cache(
    step: chain.Step,
    options: Any,
    before: Source,
    given: Given,
    code: UserCode,
    key: str,
    cache: Cache,
    stage: Stage,
) -> tuple[Any, Mapping[str, Any], bytes]:
    """The module after a pass, what the cache keeps of it, and its weights as safetensors."""
    entry = cache.get(step.name, key) if processes.is_main() else None
    if processes.broadcast(entry is not None):
        stage.set(status="cached")
    with _workplace(cache, step.name, key) as work:
        needs, samples = options.needs, given.samples
        context = Context(
            original=given.source.module,
            inputs=given.inputs,
            outputs=given.original.outputs,
            example=given.reference.feeds[0],
            calibration=samples.calibration if "calibration" in needs else None,
            training=samples.training if "training" in needs else None,
            gates=given.request.quality if "gates" in needs else {},
            code=code,
            work=work,
            progress=stage.progress,
            quantize=_quantize(given).read() if "quantize" in needs else None,
        )
        made: ModuleResult | None = None
        if stage.record.status == "cached":
            kept = entry and (entry.document, (entry.folder / WEIGHTS).read_bytes())
        else:
            made = step.known.apply(_copied(before, step), options, context)
            kept = ({**document_of(made), "recipe": dict(made.recipe)}, _written(made.model))
        document, weights = processes.broadcast(kept)
        module = step.known.replay(_copied(before, step), document["recipe"], context)
        _load(module, weights, step)
        if made is not None and processes.is_main():
            made.model.eval()
            _check_replay(made.model, module, context, step)
            cache.put(step.name, key, {WEIGHTS: weights}, document)
    return module, document, weights


def _workplace(cache: Cache, name: str, key: str) -> AbstractContextManager[Path]:
    if processes.is_main():
        return cache.workplace(name, key)
    return files.temporary_folder()


def _quantize(given: Given) -> chain.Step:
    """The step that quantizes; `chain.check` saw to it that there is one where it is needed."""
    return next(step for step in given.request.chain if step.name == "quantize")


def _copied(before: Source, step: chain.Step) -> Any:
    """A copy of the module that a pass may change."""
    try:
        return copy.deepcopy(before.module)
    except Exception as error:  # whatever the parts of a user's module raise when they are copied
        raise ChainError(
            "chain-module-copy",
            f"{step.name} needs a copy of the network, and it cannot be copied",
            why=f"{type(error).__name__}: {error}",
            hint="copy.deepcopy(model) must work: keep computed tensors out of its attributes",
        ) from error


def _written(module: Any) -> bytes:
    """The state dict as safetensors; a tensor with several names under the first of them."""
    from safetensors.torch import save

    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "detach"):
            raise ChainError(
                "chain-module-state",
                f"the network keeps {name} in its state dict, which is no tensor",
                why=f"it is of type {type(tensor).__name__}",
                hint="make it a part of the factory's arguments, or a buffer",
            )
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return bytes(save(tensors))


def _load(module: Any, weights: bytes, step: chain.Step) -> None:
    from safetensors.torch import load

    load_state(Path(f"{step.name}'s result"), module, load(weights))
    module.eval()


def _check_replay(made: Any, replayed: Any, context: Context, step: chain.Step) -> None:
    """The module that the recipe gives answers as the one that the pass made."""
    import torch

    from edgepack.chain.network import alike

    run = [torch_run(module, context.inputs)(context.example) for module in (made, replayed)]
    for one, other in zip(*run, strict=True):
        if not alike(torch.from_numpy(one), torch.from_numpy(other), REPLAY_TOLERANCE):
            raise ChainError(
                "chain-replay",
                f"the recipe of {step.name} does not give the network that it made",
                why="the two answer the same sample differently",
                hint="this is a fault of the pass: report it with the chain",
            )
