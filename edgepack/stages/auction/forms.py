"""Forms of the model that compete, and the engines that would run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgepack import engine, passes
from edgepack.context import BuildContext, Graph
from edgepack.context.graph import parse_model
from edgepack.errors import ChainError
from edgepack.onnx_tools.operators import Trait, having, operator
from edgepack.onnx_tools.writer import serialised
from edgepack.passes.quantize.options import NAME as QUANTIZE
from edgepack.runtime.bundle.engines import BF16, Variant
from edgepack.spec.target import Target
from edgepack.stages.auction.candidate import DYNAMIC, FP32, MIXED, Candidate
from edgepack.stages.auction.mixed import choose_floats
from edgepack.stages.auction.nodes import (
    NodeTime,
    find_share,
    measure_conversion,
    profile,
    time_layers,
)

# Share of the float graph's time in layers that the dynamic mode converts, from which that form is
# worth a candidate.
DYNAMIC_SHARE = 0.3
# Options of the static mode that the dynamic one has as well.
_SHARED = ("scheme", "range", "exclude")


def list_candidates(graph: Graph, context: BuildContext, notes: list[str]) -> list[Candidate]:
    """Return the candidates, fp32 in the profile's engine first, the others by their promise.

    With a chain that the user requested, its result competes alone, in every engine.

    Args:
        graph: result of the chain.
        context: the build.
        notes: receives sentences on the forms.
    """
    request = context.request
    precision = passes.name_precision(request.chain)
    chosen = not request.chain_is_default
    if chosen or graph.before is None:
        forms = {precision: graph}
    else:
        further = _make_forms(graph.root, graph, context, notes)
        forms = {FP32: graph.root, precision: graph, **further}
    own = find_own_variant(request.target)
    candidates = [Candidate(form, entry, own) for form, entry in forms.items()]
    if FP32 not in forms:
        candidates.insert(0, Candidate(FP32, context.original, own, competes=False))
    for variant in engine.list_alternatives(request.target):
        bf16 = variant.settings.precision == BF16
        # bfloat16 is a precision, which a requested chain leaves to the user.
        if bf16 and chosen:
            continue
        for form in _rank_forms(forms, bf16):
            candidates.append(Candidate(form, forms[form], variant))
    return candidates


def _rank_forms(forms: Mapping[str, Graph], bf16: bool) -> list[str]:
    """Return the forms that run in a further engine, the most promising first."""
    # OpenVINO has no kernels for onnxruntime's dynamic operators.
    ranked = [form for form in forms if form not in (DYNAMIC, MIXED)]
    if not bf16:
        return ranked[::-1]
    # Without float operators bfloat16 changes nothing.
    return [form for form in ranked if not forms[form].integer_only]


def find_own_variant(target: Target) -> Variant:
    """Return the variant of the profile's own engine."""
    needs = {"engine_version": target.engine_version} if target.engine_version else {}
    return Variant(target.engine, engine.find_runtime(target), needs)  # type: ignore[arg-type]


def _make_forms(
    root: Graph, graph: Graph, context: BuildContext, notes: list[str]
) -> dict[str, Graph]:
    """Return the mixed and the dynamic form, each if it is worth a candidate."""
    feed = context.reference.feeds[0]
    floats = profile(root.model, feed)
    forms: dict[str, Graph] = {}
    mixed = _make_mixed(root, graph, floats, context)
    if mixed is not None:
        forms[MIXED] = mixed
        notes.append(f"Mixed: {len(mixed.returned)} layers in float, where int8 costs time.")
    # Where the static form has no float operator left, ranges taken at run time only add some.
    share = 0.0 if graph.integer_only else find_share(floats, _list_dynamic_operators())
    if share >= DYNAMIC_SHARE:
        try:
            forms[DYNAMIC] = _make_dynamic(root, context)
        except ChainError as error:
            notes.append(f"No dynamic form: {error.what}.")
    return forms


def _make_mixed(
    root: Graph, graph: Graph, floats: Sequence[NodeTime], context: BuildContext
) -> Graph | None:
    """Return the int8 graph with those layers in float that int8 makes slower; None for none."""
    if graph.trials is None or graph.before is not root:
        return None
    trials = graph.trials()
    integers = profile(graph.model, context.reference.feeds[0])
    slow = choose_floats(
        time_layers(floats, root.model, trials.names),
        time_layers(integers, root.model, set(trials.names) - set(graph.returned)),
        measure_conversion(integers),
    )
    returned = tuple(name for name in trials.names if name in {*slow, *graph.returned})
    if not slow or len(returned) == len(trials.names):
        return None
    result = trials.result(returned)
    integer_only = bool(result.details.get("integer_only", False))
    return replace(
        graph, model=serialised(result.model), integer_only=integer_only, returned=returned
    )


def _make_dynamic(root: Graph, context: BuildContext) -> Graph:
    """Return the graph with activation ranges taken at run time. Raises ChainError."""
    options: dict[str, object] = {"mode": "dynamic"}
    for step in context.request.chain:
        if step.name == QUANTIZE:
            shared = {key: step.options[key] for key in _SHARED if key in step.options}
            options.update(shared)
    step = passes.Step(QUANTIZE, options)
    model, progress = parse_model(root.model), context.ledger.progress
    result = step.graph_pass.apply(model, None, step.read(), progress)
    integer_only = bool(result.details.get("integer_only", False))
    return replace(root, model=serialised(result.model), integer_only=integer_only)


def _list_dynamic_operators() -> frozenset[str]:
    """Return the operators that the dynamic mode converts, as onnxruntime's profile names them."""
    layers = {name for name in having(Trait.LAYER) if not operator(name).no_dynamic}
    # onnxruntime fuses a MatMul with its scale to FusedMatMul, and a Gemm with its Relu.
    fused = {f"Fused{name}" for name in layers}
    return having(Trait.RECURRENT).union(layers, fused)
