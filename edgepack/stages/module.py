"""Apply the passes on the torch module; the result of each is exported and measured at once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack import files, passes
from edgepack.cache import Cache, digest
from edgepack.context import BuildContext, Graph
from edgepack.context.graph import describe_shapes, describe_tensors
from edgepack.errors import ChainError
from edgepack.ledger import Ledger, Stage
from edgepack.passes.module import ModuleContext, ModuleResult
from edgepack.passes.training import processes
from edgepack.plugins import attribute_faults, credit
from edgepack.source.eager import count_parameters, torch_run
from edgepack.source.model import Source
from edgepack.source.torch_host import import_torch
from edgepack.source.weights import load_state
from edgepack.stages.cached import record_document, to_document
from edgepack.stages.code import UserCode
from edgepack.stages.graph import export_again
from edgepack.stages.measure import measure

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = "weights.safetensors"
# Bound on the difference between a replayed module's answers and the pass's own, relative to the
# largest value: rounding alone.
REPLAY_TOLERANCE = 1e-5


def apply_module_pass(
    step: passes.Step, before: Source, context: BuildContext
) -> tuple[Source, Graph]:
    """Apply one pass to the module; return the new source and its graph.

    The worker processes of a training export nothing, and return the original's graph.

    Raises the errors of the pass and of the export; ChainError `chain-replay` if the pass's
    recipe does not reproduce its module.
    """
    torch = import_torch(f"The pass {step.name}")
    options = step.read()
    inputs = tuple(tensor.name for tensor in context.inputs)
    outputs = tuple(tensor.name for tensor in context.original.outputs)
    code = UserCode(torch, (context.request.base,), step.name, inputs=inputs, outputs=outputs)
    with context.ledger.stage(step.name) as stage:
        key = context.cache.key(step.name, _collect_key_parts(step, options, before, context, code))
        module, document, weights = _apply_cached(step, options, before, context, code, key, stage)
        record_document(document, stage)
        stage.note(*credit(step.plugin))
        result = replace(
            before,
            digest=digest({"before": before.key, "recipe": document["recipe"],
                           "weights": hashlib.sha256(weights).hexdigest()}),
            identity="",
            deferred=None,
            module=module,
            run=torch_run(module, context.inputs),
            parameters=count_parameters(module),
            bytes=len(weights),
        )  # fmt: skip
        # The workers only take part in the training of the passes that follow.
        if not processes.is_main():
            return result, context.original
        graph, notes = export_again(result, context)
        # Notes of the original's export are not repeated.
        repeated = _collect_notes(context.ledger, "export")
        for note in notes:
            if note not in repeated:
                stage.note(note)
        measure(graph, context, stage)
    return result, graph


def _collect_notes(ledger: Ledger, stage: str) -> set[str]:
    notes: set[str] = set()
    for record in ledger.records:
        if record.stage == stage:
            notes.update(record.notes)
    return notes


def _collect_key_parts(
    step: passes.Step,
    options: passes.options.PassOptions,
    before: Source,
    context: BuildContext,
    code: UserCode,
) -> dict[str, object]:
    """Return the key parts of a pass's result."""
    needs = options.needs
    # A part that the pass does not need is empty, and so does not invalidate its results.
    samples: dict[str, str] = {}
    for role, samples_digest in context.samples.lint.digests.items():
        if role in needs:
            samples[role] = samples_digest
    gates: Mapping[str, float] = {}
    metric: object = ""
    environment: Mapping[str, object] = {}
    if "gates" in needs:
        gates = dict(context.request.quality)
        metric = context.metric_key if context.primary else ""
    if "training" in needs:
        environment = processes.environment()
    return {
        "source": before.key,
        "original": context.source.key,
        "inputs": describe_tensors(context.inputs),
        "outputs": describe_tensors(context.original.outputs),
        "example": describe_shapes(context.reference.feeds[0]),
        **step.key_parts(),
        "code": [[spec, code.digest(spec, arguments)] for spec, arguments in options.code],
        "samples": samples,
        "gates": gates,
        "metric": metric,
        "later": {later.name: dict(later.options) for later in _find_later_steps(needs, context)},
        "environment": environment,
    }


def _apply_cached(
    step: passes.Step,
    options: passes.options.PassOptions,
    before: Source,
    context: BuildContext,
    code: UserCode,
    key: str,
    stage: Stage,
) -> tuple[nn.Module, Mapping[str, Any], bytes]:
    """Return the module after a pass, its cached document, and its weights as safetensors.

    The module is always replayed from the recipe, on a miss as well: a later build, and the
    worker processes of a training, have nothing else.
    """
    cache = context.cache
    # The main process decides: a worker may see the cache before or after it was written.
    entry = None
    if processes.is_main():
        entry = cache.get(step.name, key)
    if processes.broadcast(entry is not None):
        stage.set(status="cached")
    # The folder outlives an interrupted build, which resumes from the checkpoints in it.
    with _open_work_folder(cache, step.name, key) as work:
        needs, samples = options.needs, context.samples
        pass_context = ModuleContext(
            original=context.source.network,
            inputs=context.inputs,
            outputs=context.original.outputs,
            example=context.reference.feeds[0],
            calibration=samples.calibration if "calibration" in needs else None,
            training=samples.training if "training" in needs else None,
            gates=context.request.quality if "gates" in needs else {},
            code=code,
            work=work,
            progress=stage.progress,
            later={later.name: later.read() for later in _find_later_steps(needs, context)},
            metric=context.primary if "gates" in needs else None,
            postprocess=context.reference.postprocess,
        )
        result: ModuleResult | None = None
        document: Mapping[str, Any] = {}
        weights = b""
        if stage.record.status == "cached":
            if entry is not None:
                document, weights = entry.document, (entry.folder / WEIGHTS).read_bytes()
        else:
            with attribute_faults(step.plugin):
                result = step.module_pass.apply(_copy_module(before, step), options, pass_context)
            document = {**to_document(result), "recipe": dict(result.recipe)}
            weights = _serialize(result.model)
        # Workers get the main process's result, so that all of them continue with one network.
        document, weights = processes.broadcast((document, weights))
        with attribute_faults(step.plugin):
            module = step.module_pass.replay(
                _copy_module(before, step), document["recipe"], pass_context
            )
        _load_weights(module, weights, step)
        if result is not None and processes.is_main():
            result.model.eval()
            _check_replay(result.model, module, pass_context, step)
            cache.put(step.name, key, {WEIGHTS: weights}, document)
    return module, document, weights


def _open_work_folder(cache: Cache, name: str, key: str) -> AbstractContextManager[Path]:
    if processes.is_main():
        return cache.checkpoint_folder(name, key)
    return files.temporary_folder()


def _find_later_steps(needs: Sequence[str], context: BuildContext) -> list[passes.Step]:
    """Return the steps whose options a pass needs.

    `passes.check_chain` ensures that they follow it.
    """
    return [step for step in context.request.chain if step.name in needs]


def _copy_module(before: Source, step: passes.Step) -> nn.Module:
    """Return a copy of the module, for a pass to change."""
    try:
        return copy.deepcopy(before.network)
    except Exception as error:  # a user's module may raise anything
        raise ChainError(
            "chain-module-copy",
            f"{step.name} needs a copy of the network, but it cannot be copied",
            why=f"{type(error).__name__}: {error}",
            hint="copy.deepcopy(model) must work: remove computed tensors from its attributes",
        ) from error


def _serialize(module: nn.Module) -> bytes:
    """Serialize a state dict as safetensors; a shared tensor has the first of its names."""
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    visited: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "detach"):
            raise ChainError(
                "chain-module-state",
                f"the network's state dict holds {name}, which is not a tensor",
                why=f"it is of type {type(tensor).__name__}",
                hint="make it a part of the factory's arguments, or a buffer",
            )
        # safetensors refuses tensors that share memory; `load_state` restores the other names.
        if id(tensor) not in visited:
            visited.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return bytes(save(tensors))


def _load_weights(module: nn.Module, weights: bytes, step: passes.Step) -> None:
    from safetensors.torch import load

    load_state(Path(f"{step.name}'s result"), module, load(weights))
    module.eval()


def _check_replay(
    result: nn.Module, replayed: nn.Module, pass_context: ModuleContext, step: passes.Step
) -> None:
    """Require that the replayed module answers as the pass's own. Raises ChainError.

    A recipe that forgets a channel usually fails to load the weights; one that forgets a size in
    the forward, such as the number of heads, gives other answers.
    """
    import torch

    from edgepack.passes.network import are_outputs_equal

    answers = torch_run(result, pass_context.inputs)(pass_context.example)
    replays = torch_run(replayed, pass_context.inputs)(pass_context.example)
    for answer, replay in zip(answers, replays, strict=True):
        pair = (torch.from_numpy(answer), torch.from_numpy(replay))
        if not are_outputs_equal(*pair, REPLAY_TOLERANCE):
            raise ChainError(
                "chain-replay",
                f"the recipe of {step.name} does not reproduce its network",
                why="the two answer the same sample differently",
                hint="this is a bug in the pass: report it with the chain",
            )
