"""The whole build, on one screen."""

from __future__ import annotations

import time
from dataclasses import replace

from edgepack import files, passes, proof, signing, stages
from edgepack.cache import Cache
from edgepack.device import Local
from edgepack.ledger import Ledger, Progress
from edgepack.passes.training import processes
from edgepack.proof import Outcome
from edgepack.request import Request
from edgepack.runtime.device.machine import describe


def build(request: Request, progress: Progress) -> Outcome | None:
    """Build a bundle from a trained model and verify it.

    If there are several processes (`accelerate launch -m edgepack build ...`), all but the main one
    only help to train, and return None.

    On success the bundle is at `request.output`. On failure an EdgepackError is raised, and an
    earlier file there is untouched. Raises GateError if a gate was missed; the rejected bundle is
    then kept beside it, with its report.
    """
    started = time.perf_counter()
    files.check_output(request.output, request.list_inputs())
    stages.check_host(request, describe())
    if request.sign:
        signing.fingerprint(request.sign)
    ledger = Ledger(progress)
    cache = Cache(request.cache, refresh=request.refresh)

    with processes.in_turn():
        wheels = stages.fetch_wheels(request, cache, ledger)
        source = stages.load_source(request, ledger)
        source, inputs = stages.resolve_inputs(request, source, ledger)
        samples = stages.open_samples(request, inputs, ledger)
        reference = stages.run_original(request, source, inputs, samples, cache, ledger)
        source = replace(source, identity=reference.identity)
        exported = stages.export(request, source, inputs, reference, cache, ledger)
        context = stages.BuildContext(request, source, inputs, samples, reference, exported)
        context = stages.simplify(context, cache, ledger)

    module, graph = source, context.original
    for step in passes.select_domain("module", request.chain):
        module, graph = stages.apply_module_pass(step, module, context, cache, ledger)
    if not processes.is_main():
        return None
    for step in passes.select_domain("graph", request.chain):
        graph = stages.apply_graph_pass(step, graph, context, cache, ledger)
    graph = stages.build_engine(graph, request, reference, ledger)

    job = proof.Job(request, source, samples, reference, context.original, graph, wheels)
    # The new file is verified with the loader inside it, as on a device.
    with Local(runs_bundle=True) as host:
        outcome = proof.prove(job, host, ledger, started)
    if not outcome.accepted:
        raise proof.make_gate_error(outcome, ledger, request.chain)
    return outcome
