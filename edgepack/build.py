"""The whole build, top to bottom, on one screen."""

from __future__ import annotations

import time
from dataclasses import replace

from edgepack import chain, files, proof, signing, stages
from edgepack.cache import Cache
from edgepack.chain.training import processes
from edgepack.device import Local
from edgepack.ledger import Ledger, Progress
from edgepack.proof import Outcome
from edgepack.request import Request
from edgepack.runtime.device.machine import describe


def build(request: Request, progress: Progress) -> Outcome | None:
    """From a trained model to a bundle that has proved itself.

    Of several processes (`accelerate launch -m edgepack build ...`) the others help to train, and
    return None.

    The bundle stands at `request.output` afterwards, or nothing does: whatever fails raises an
    EdgepackError, and what was there before is untouched. Raises GateError where a gate was
    missed; the rejected bundle is then kept aside, with its report.
    """
    started = time.perf_counter()
    files.check_place(request.output, request.reads())
    stages.check_host(request, describe())
    if request.sign:
        signing.fingerprint(request.sign)
    ledger = Ledger(progress)
    cache = Cache(request.cache, refresh=request.refresh)

    with processes.in_turn():
        wheels = stages.fetch_wheels(request, cache, ledger)
        source = stages.load_source(request, ledger)
        source, inputs = stages.settle_inputs(request, source, ledger)
        samples = stages.open_samples(request, inputs, ledger)
        reference = stages.ask_original(request, source, inputs, samples, cache, ledger)
        source = replace(source, identity=reference.identity)
        exported = stages.export(request, source, inputs, reference, cache, ledger)
        given = stages.Given(request, source, inputs, samples, reference, exported)
        given = stages.simplify(given, cache, ledger)

    module, graph = source, given.original
    for step in chain.of_domain("module", request.chain):
        module, graph = stages.apply_module(step, module, given, cache, ledger)
    if not processes.is_main():
        return None
    for step in chain.of_domain("graph", request.chain):
        graph = stages.apply(step, graph, given, cache, ledger)
    graph = stages.build_engine(graph, request, reference, ledger)

    job = proof.Job(request, source, samples, reference, given.original, graph, wheels)
    # The file that was just written is judged through the loader in it, as on a device.
    with Local(runs_bundle=True) as host:
        outcome = proof.prove(job, host, ledger, started)
    if not outcome.accepted:
        raise proof.missed(outcome, ledger)
    return outcome
