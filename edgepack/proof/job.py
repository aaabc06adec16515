"""Job of the proof: the draft of a bundle, its gates and its paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack import bundle, engine, graph
from edgepack.bundle.wheels import WheelSets
from edgepack.cache import tool_versions
from edgepack.context import BuildContext, Graph, SampleSets
from edgepack.context.gates import require_gates
from edgepack.context.graph import parse_model
from edgepack.context.parts import divide_outputs
from edgepack.data.stream import class_names_of
from edgepack.host import stands_in
from edgepack.onnx_tools.limits import OLDEST_ONNXRUNTIME
from edgepack.onnx_tools.operators import is_quantized
from edgepack.request import Request
from edgepack.runtime.bundle.engines import CUDA, F32, ONNXRUNTIME, OPENVINO, EngineOptions, Variant
from edgepack.runtime.parity.gates import FIDELITY_DB
from edgepack.source import formats
from edgepack.source.model import Source
from edgepack.spec.gates import MINIMA
from edgepack.spec.target import Target

if TYPE_CHECKING:
    from edgepack.runtime.documents import DeviceNeeds, VariantNeeds


@dataclass(frozen=True)
class Job:
    """Inputs of the proof.

    Attributes:
        context: the build, with the original model and its answers.
        graph: the graph that ships.
        wheels: wheels that the bundle includes, by its variants.
    """

    context: BuildContext
    graph: Graph
    wheels: WheelSets

    @property
    def request(self) -> Request:
        """The user's request."""
        return self.context.request

    @property
    def stands_in(self) -> tuple[str, ...]:
        """Options of the loader if this host stands in for another processor or a GPU."""
        if stands_in(self.request.target):
            return ("--stand-in",)
        return ()

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the loader for the variant that gives the bundle's answers: onnxruntime's."""
        if self.stands_in:
            return self.stands_in
        return ("--variant", find_answering(list_variants(self.request.target, self.graph)).name)


def find_answering(variants: Sequence[Variant]) -> Variant:
    """Return the variant whose answers the bundle stores: the first in onnxruntime.

    Its integers are the same bits on every CPU of the target.
    """
    for variant in variants:
        if variant.engine == ONNXRUNTIME:
            return variant
    return variants[0]


def reject_path(output: Path) -> Path:
    """Return the path of a bundle that missed a gate: model.rejected.edgepack."""
    return output.with_name(f"{output.stem}.rejected{output.suffix}")


def draft(job: Job) -> bundle.Contents:
    """Return the contents of the bundle, before it has answers of its own."""
    context, target = job.context, job.request.target
    # Impossible gates are refused before anything is written.
    bounds = bound_gates(job)
    variants = bound_variants(job, list_variants(target, job.graph))
    return bundle.Contents(
        name=job.request.name,
        target=target.name,
        device=_describe_device(target),
        inputs=job.graph.inputs,
        outputs=job.graph.outputs,
        model=job.graph.model,
        variants=variants,
        engine_options=EngineOptions(target.workspace_mb, target.dla_core, job.graph.profiles),
        reference=_list_inputs(job),
        original=list(map(np.stack, zip(*context.reference.original, strict=True))),
        # The answers of this host, known once the draft has run.
        built=None,
        sizes=context.reference.sizes,
        gates=bounds,
        metric=context.metric,
        parts=divide_outputs(context.reference, tuple(job.graph.outputs)),
        provenance=_describe_provenance(job),
        tools=list_tools(job),
        requirements=list_requirements(job, variants),
        preprocessing=context.reference.preprocessing,
        class_names=find_class_names(job),
        raw=context.reference.raw,
        postprocessing=job.request.code.postprocess,
        macs=_count_macs(job),
    )


def _count_macs(job: Job) -> Mapping[str, int]:
    """Return the products of each node, for the share that a GPU takes; empty for a CPU."""
    if engine.find_runtime(job.request.target) != CUDA:
        return {}
    model = parse_model(job.graph.model)
    return graph.count_by_node(model, job.context.reference.feeds[0]) or {}


def list_requirements(job: Job, variants: Sequence[Variant]) -> str:
    """Return the text of requirements.txt: the engines', and what the preprocessing needs."""
    text = engine.requirements(job.request.target, variants)
    preprocessing = job.context.reference.preprocessing
    if preprocessing is not None:
        text += "".join(f"{line}\n" for line in preprocessing.requirements())
    # A package that both need is required once.
    for line in job.request.code.requirements():
        if f"{line}\n" not in text:
            text += f"{line}\n"
    return text


def find_class_names(job: Job) -> tuple[str, ...]:
    """Return the names of the classes: of the samples, the user or the model; empty for none."""
    names = class_names_of(job.context.samples.evaluation)
    return names or job.request.classes.names or job.context.source.class_names


def _describe_device(target: Target) -> DeviceNeeds:
    device: DeviceNeeds = {
        "arch": target.arch,
        "isa": list(target.isa),
        "python": target.python,
    }
    if target.jetpack:
        device["jetpack"] = target.jetpack
    return device


def _list_inputs(job: Job) -> list[list[np.ndarray]]:
    """Return the arrays of each input, one for each reference sample."""
    arrays = []
    for tensor in job.graph.inputs:
        arrays.append([feed[tensor.name] for feed in job.context.reference.feeds])
    return arrays


def describe_provenance(request: Request, source: Source, samples: SampleSets) -> dict[str, object]:
    """Return what a bundle is built from, as its index states it."""
    chain = []
    for step in request.chain:
        chain.append({"pass": step.name, "options": dict(step.options)})
    return {
        "source": {
            "kind": source.kind,
            "sha256": source.published_digest,
            "trusted_pickle": source.trusted_pickle,
        },
        "samples": dict(samples.lint.digests),
        "proven": samples.proven,
        "chain": chain,
    }


def _describe_provenance(job: Job) -> dict[str, object]:
    context = job.context
    provenance = describe_provenance(job.request, context.source, context.samples)
    # Layers that repair took back to float; without repair the key is absent.
    if job.graph.returned:
        provenance["returned"] = list(job.graph.returned)
    # The form that an auction chose, which need not be the chain's.
    if job.graph.form:
        provenance["form"] = job.graph.form
    return provenance


def list_tools(job: Job) -> dict[str, str]:
    """Return the versions of edgepack, its libraries and the plug-ins of this build."""
    # A plug-in decides the contents as edgepack does, so its version is named as well.
    plugins = [step.plugin for step in job.request.chain]
    plugins.append(engine.find_plugin(job.request.target.engine))
    plugins.append(formats.find_plugin(job.context.source.kind))
    plugins += [score.task.plugin for score in job.context.reference.scores]
    versions = tool_versions()
    for plugin in filter(None, plugins):
        versions[plugin.distribution] = plugin.version
    return versions


def list_variants(target: Target, candidate: Graph | None = None) -> tuple[Variant, ...]:
    """Return the variants of a graph, else that of the profile's engine and of its fallback.

    For TensorRT with onnxruntime as its fallback: ("tensorrt", "onnxruntime"). A graph has
    variants of its own if the build has compared engines: ("openvino", "onnxruntime").
    """
    if candidate is not None and candidate.variants:
        return candidate.variants
    # A need is a specifier, such as {"engine_version": ">=1.19,<2"}; an empty one is left out.
    needs: VariantNeeds = {}
    if target.compute_capability:
        needs["compute_capability"] = target.compute_capability
    if target.engine_version:
        needs["engine_version"] = target.engine_version
    result = [Variant(target.engine, engine.find_runtime(target), needs)]
    if target.fallback:
        # Python 3.8, as on JetPack 5, has no newer onnxruntime than this.
        oldest: VariantNeeds = {"engine_version": OLDEST_ONNXRUNTIME}
        result.append(Variant(target.fallback, target.fallback, oldest))
    return tuple(result)


def keep_variants(job: Job, contents: bundle.Contents, passed: Sequence[str]) -> bundle.Contents:
    """Return the contents with the variant that gives the answers, and those that passed."""
    if job.stands_in:
        return contents
    answering = find_answering(contents.variants).name
    passing = [entry for entry in contents.variants if entry.name in (answering, *passed)]
    return replace(contents, variants=passing, requirements=list_requirements(job, passing))


def bound_variants(job: Job, variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return the variants, those of OpenVINO with gates of fidelity of their own.

    The stored answers are onnxruntime's. Only float32 without integers gives almost the same in
    both engines.
    """
    target = job.request.target
    quantized = any(is_quantized(node.op_type) for node in parse_model(job.graph.model).graph.node)
    bounded = []
    for variant in variants:
        if variant.engine == OPENVINO:
            bounds = target.openvino
            if variant.settings.precision == F32 and not quantized:
                bounds = {"snr_db": target.fidelity.get("snr_db", FIDELITY_DB)}
            variant = variant._replace(fidelity=bounds)
        bounded.append(variant)
    return tuple(bounded)


def bound_gates(job: Job) -> dict[str, dict[str, float]]:
    """Return the bounds of quality, of fidelity and of a GPU's placement, by gate.

    Raises:
        SpecError: `gates-empty` if one of them has no gate.
    """
    bounds = dict(job.request.target.fidelity)
    # Float operators round differently on other CPUs; only an integer model can be bit-exact.
    exact = bool(bounds.pop("bit_exact", False)) and job.graph.integer_only
    if exact:
        # Equal bits meet any other bound as well.
        bounds = {"bit_exact": True}
    gates = {
        "quality": dict(job.context.bounds),
        "fidelity": require_gates(
            bounds,
            "fidelity",
            "the profile's only gate is bit_exact, and the model keeps float operators",
        ),
    }
    # On a CPU nothing is left to another processor.
    if job.request.target.placement and engine.find_runtime(job.request.target) == CUDA:
        gates["placement"] = dict(job.request.target.placement)
    return gates


def describe_lowered_gates(request: Request) -> list[str]:
    """Return a sentence for every gate that the manifest sets lower than the profile."""
    sentences = []
    for gate in sorted(request.explicit_gates & set(MINIMA) & set(request.target.quality)):
        bound, default = request.quality[gate], request.target.quality[gate]
        if bound < default:
            sentences.append(
                f"the gate {gate} was lowered to {bound:g}; the profile sets {default:g}"
            )
    return sentences
