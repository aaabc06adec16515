"""The whole build, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgepack import files, host, passes, proof, signing, stages
from edgepack.allocator import keep_freed_memory
from edgepack.cache import Cache
from edgepack.context import Context
from edgepack.device import Local
from edgepack.errors import EdgepackError
from edgepack.forecast import store_seconds
from edgepack.ledger import STAGES_AFTER, STAGES_BEFORE, Ledger, Progress
from edgepack.passes.training import processes
from edgepack.proof import Outcome
from edgepack.request import Request
from edgepack.runtime.device.machine import describe


def build(
    request: Request, progress: Progress, shared: stages.SharedStages | None = None
) -> Outcome | None:
    """Build a bundle from a trained model and verify it.

    If there are several processes (`accelerate launch -m edgepack build ...`), all but the main one
    only help to train, and return None.

    On success the bundle is at `request.output`. On failure an EdgepackError is raised, and an
    earlier file there is untouched. Raises GateError if a gate was missed; the rejected bundle is
    then kept beside it, with its report.

    Args:
        request: the complete description of the build.
        progress: shows the stages.
        shared: reuses the stages before the export for several targets of one command.
    """
    with keep_freed_memory():
        return _build(request, Ledger(progress), shared or stages.SharedStages())


def _build(request: Request, ledger: Ledger, shared: stages.SharedStages) -> Outcome | None:
    files.check_output(request.output, request.list_inputs())
    proof.check_existing(request)
    host.check_host(request, describe())
    proof.require_emulators(request)
    if request.sign:
        signing.fingerprint(request.sign)
    context = Context(request, Cache(request.cache, refresh=request.refresh), ledger)

    with processes.in_turn():
        opened = shared.open(context)
        proof.check_provenance(request, opened.source, opened.samples)
        wheels = stages.fetch_wheels(context, opened.samples)
        source, reference = shared.run_original(context, opened)
        build_context = stages.export(context, source, opened.inputs, opened.samples, reference)
        build_context = stages.simplify(build_context)

    module, graph = source, build_context.original
    for step in passes.select_domain("module", request.chain):
        module, graph = stages.apply_module_pass(step, module, build_context)
    if not processes.is_main():
        return None
    for step in passes.select_domain("graph", request.chain):
        graph = stages.apply_graph_pass(step, graph, build_context)
    graph = stages.hold_auction(graph, build_context)
    graph = stages.build_engine(graph, build_context)

    # The new file is verified with the loader inside it, as on a device.
    with Local(runs_bundle=True) as device:
        outcome = proof.prove(proof.Job(build_context, graph, wheels), device)
    store_seconds(request, ledger.records)
    if not outcome.accepted:
        raise proof.make_gate_error(outcome, build_context)
    return outcome


@contextmanager
def refuse_exit(terminated: int | None = None) -> Iterator[None]:
    """Turn `sys.exit` in the user's code into an error: exit(0) must not look like a bundle.

    Args:
        terminated: status of an exit that is passed on; None for none.
    """
    try:
        yield
    except SystemExit as error:
        if terminated is not None and error.code == terminated:
            raise
        raise EdgepackError(
            "code-exited",
            "the code of the model or of the samples exited during the build",
            why=f"it called sys.exit({error.code!r})",
            hint="raise an exception instead, or return",
        ) from error


def list_stages(request: Request) -> list[str]:
    """Return the stages of a build in order, as the ledger names them.

    A build records more of them: `repair` after a missed gate, `variants` of further engines, and
    skipped ones.
    """
    absent = {"repair", "variants"}
    if not request.wheels:
        absent.add("wheels")
    if not request.emulate or not host.needs_emulation(request.target):
        absent.add("emulate")
    # Latency is measured on this host only, and never in an emulator.
    if host.is_foreign(request.target) or request.latency == "none":
        absent.add("latency")
    # Where this host only stands in for the target, its emulated CPUs count instructions.
    counts = host.is_foreign(request.target) and "emulate" not in absent
    stands_in = host.stands_in(request.target) and not counts
    if stands_in or request.latency == "none" or not request.optimize.weights:
        absent.add("auction")
    chain = [step.name for step in request.chain]
    return [name for name in (*STAGES_BEFORE, *chain, *STAGES_AFTER) if name not in absent]
