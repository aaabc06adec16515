"""`tune`: choose the fastest engine and settings for this device, verify them, and seal the choice.

The bundle's variants compete with several settings each. Every turn of a candidate runs in a
process of its own. After each round the slower half drops out; the last few run in turns
A B C A B C, so that a drift of the machine's speed affects all of them. The choice is sealed only
after its answers on the reference samples pass the bundle's gates. A second `tune` does nothing; a
killed one leaves the previous choice, or none.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple, cast

from ..bundle.archive import Archive
from ..bundle.atomic import lock_part, sweep
from ..bundle.checksum import require_checksum
from ..bundle.engines import BF16, F32, ONNXRUNTIME, OPENVINO, Settings, Variant
from ..bundle.index import Index, check_all, read_index
from ..device import machine
from ..device.device_info import device_info
from ..device.tuned import (
    Tuned,
    describe_candidates,
    find_tuned,
    list_engines,
    make_key,
    tuned_path,
    write_tuned,
)
from ..device.variants import check_variant
from ..errors import DeviceError, EdgepackError, GateError
from ..parity.verdict import decide, list_doubts
from ..streams import print_status
from .apart import run_apart
from .bench import WARM_UP_SECONDS, time_calls
from .load import LoadMonitor, disturbances, spread_of
from .proof import describe_proof, list_missed, list_questions

if TYPE_CHECKING:
    from ..documents import (
        Answers,
        Question,
        TunedCandidate,
        TunedDocument,
        TuneDocument,
        TuneProbe,
    )
    from ..model import Model

SECONDS = 20.0
# Candidates of the last round, and the turns of each in it.
FINALISTS, LAST_TURNS = 3, 3
# A candidate that is faster by less counts as equal, and the bundle stays as built.
NOISE = 0.03
# A turn has at least so many queries, however slow the model is.
FEWEST = 3
# Flags of CPUs that compute in bfloat16, on x86 and on ARM.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
# A turn or a verification that takes longer hangs; slow devices need minutes.
TURN_LIMIT, VERIFY_LIMIT = 300.0, 3600.0


class _Candidate:
    """Variant with settings, and its measurements.

    Attributes:
        variant: with the settings to run.
        turns: the median latency of each turn before the last round, in ms.
        last: the same of the last round, in which all candidates take turns.
        result: the reason for its loss, or "chosen"; "" while it competes.
    """

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.turns: List[float] = []
        self.last: List[float] = []
        self.result = ""

    def p50(self) -> Optional[float]:
        """Return the median of its turns, in ms; None before the first."""
        turns = self.last or self.turns
        return median(turns) if turns else None

    def ratios(self, first: _Candidate) -> List[float]:
        """Return the speed-up over another candidate in each round in which both ran.

        A machine that slows down slows both sides of a round, so their ratio stays.
        """
        if self.last and first.last:
            return [a / b for a, b in zip(first.last, self.last)]
        return [a / b for a, b in zip(first.turns, self.turns)]

    def to_json(self, first: _Candidate) -> TunedCandidate:
        """Return its figures, with the speed-up over the candidate that runs without a choice."""
        ratios = self.ratios(first)
        return {
            "label": describe_variant(self.variant),
            "p50": self.p50(),
            "ratio": median(ratios) if ratios else None,
            "result": self.result,
        }


def describe_variant(variant: Variant) -> str:
    """Return a variant and its settings in words: `cpu, 1 thread`."""
    settings, words = variant.settings, [variant.name]
    if settings.precision != F32:
        words.append(settings.precision)
    if settings.threads:
        words.append(f"{settings.threads} thread{'s' * (settings.threads > 1)}")
    if settings.spinning is not None:
        words.append("spinning" if settings.spinning else "not spinning")
    return ", ".join(words)


def tune(path: str, *, seconds: float = SECONDS, force: bool = False) -> TuneDocument:
    """Choose, verify and seal the fastest variant and settings, unless a fitting choice exists.

    Args:
        path: the bundle; `tuned.tuned_path` names the file of its choice.
        seconds: time limit of the measurements; the verification comes on top.
        force: choose again.

    Progress is printed on standard error. Returns a report of JSON values. Raises GateError if no
    candidate passes the gates, BundleError if the bundle is not intact, DeviceError if it does not
    run here.
    """
    _require_fork()
    with Archive(path) as archive:
        index = read_index(archive)
        check_all(archive, index)
        require_checksum(archive)
    seal = tuned_path(path)
    # Engines start in other processes alone: in this one, their threads would disturb the turns.
    probe = cast("TuneProbe", run_apart(lambda: _probe(path, index), TURN_LIMIT))
    if probe["sealed"] is not None and not force:
        # A killed `tune --force` may have left its temporary file beside the good choice.
        sweep(seal)
        return _report(index, seal, probe["sealed"], ())
    if probe["fault"]:
        print_status(probe["fault"])
    candidates = _list_candidates(index, probe)
    with lock_part(seal, _running) as publish:
        monitor, started = LoadMonitor(), time.monotonic()
        _compete(path, candidates, seconds)
        load, measured = monitor.result(), time.monotonic()
        first, winner, proof = _verify_best(path, candidates)
        document: TunedDocument = {
            "key": probe["key"],
            "choice": {
                "variant": winner.variant.name,
                "engine": winner.variant.engine,
                "settings": winner.variant.settings.to_json(),
            },
            "candidates": [candidate.to_json(first) for candidate in candidates],
        }
        spent = {"measure": measured - started, "verify": time.monotonic() - measured}
        # Only here, after the gates, does the choice get its final name.
        publish(lambda file: write_tuned(file, document, {"load": load, "seconds": spent}))
    report = _report(index, seal, document, list_questions(proof))
    report["tuned"] = True
    report["seconds"] = spent
    report["load"] = load
    report["disturbed"] = disturbances(load, spread_of(first.last or first.turns), 0)
    report["preprocessing"] = proof["preprocessing"]
    report["quality"] = proof["quality"]
    report["fidelity"] = proof["fidelity"]
    return report


def _require_fork() -> None:
    if not hasattr(os, "fork"):
        raise DeviceError(
            "tune-system",
            "this system cannot measure in processes of their own",
            why="it has no fork",
            hint="python3 BUNDLE bench --threads N measures one setting",
        )


def _running(why: str) -> DeviceError:
    return DeviceError(
        "tune-running",
        "another process is tuning this bundle",
        why=why,
        hint="wait until it is done",
    )


def _report(
    index: Index, seal: str, document: TunedDocument, questions: Sequence[Optional[Question]]
) -> TuneDocument:
    verdict, reasons = decide(questions, list_doubts(index))
    return {
        "key": document["key"],
        "choice": document["choice"],
        "candidates": document["candidates"],
        "tuned": False,
        "seal": seal,
        "verdict": verdict,
        "reasons": reasons,
    }


def _probe(path: str, index: Index) -> TuneProbe:
    """Find out, in a process of its own, which variants and settings this device can run."""
    device = device_info(index)
    machine.require(index.device, device)
    faults = {}
    for variant in index.variants:
        fault = check_variant(variant, index, device, None)
        if fault is not None:
            faults[variant.name] = f"{fault.what}: {fault.why}"
    sealed = find_tuned(path, index, device, every_engine=True)
    return {
        "key": make_key(index, device, list_engines(index)),
        "sealed": sealed.document if isinstance(sealed, Tuned) else None,
        "fault": f"{sealed.what}: {sealed.why}" if isinstance(sealed, DeviceError) else "",
        "faults": faults,
        "bf16": any(flag in BF16_FLAGS for flag in device["isa"] or ()),
    }


def _list_candidates(index: Index, probe: TuneProbe) -> List[_Candidate]:
    """Return all candidates; the first that fits is what runs without a choice.

    A variant for onnxruntime on four cores competes as built, with 1, 2 and 4 threads, and with
    threads that sleep while they wait.
    """
    candidates = [_Candidate(variant) for variant in index.variants]
    for candidate in list(candidates):
        variant = candidate.variant
        candidate.result = probe["faults"].get(variant.name, "")
        if candidate.result:
            continue
        built = variant.settings
        for settings in _list_settings(variant, probe):
            if settings != built:
                candidates.append(_Candidate(variant._replace(settings=settings)))
    return candidates


def _list_settings(variant: Variant, probe: TuneProbe) -> List[Settings]:
    built, cores = variant.settings, probe["key"]["cores"]
    threads = [1]
    # On four cores or more, also half of them, and all, where hyperthreads count as cores.
    if cores > 3:
        threads += [cores // 2, cores]
    settings = []
    if cores > 1:
        settings = [built._replace(threads=count) for count in threads]
    if variant.engine == ONNXRUNTIME and cores > 1:
        settings.append(built._replace(spinning=built.spinning is False))
    if variant.engine == OPENVINO and probe["bf16"]:
        settings.append(built._replace(precision=F32 if built.precision == BF16 else BF16))
    return settings


def _compete(path: str, candidates: Sequence[_Candidate], seconds: float) -> None:
    """Measure until the last round or the time is over; write the reason for each early loss."""
    deadline = time.monotonic() + seconds
    number = 0
    while True:
        number += 1
        running = [candidate for candidate in candidates if not candidate.result]
        is_last = len(running) <= FINALISTS
        share, turns = (deadline - time.monotonic()) / 3, 1
        if is_last:
            share, turns = deadline - time.monotonic(), LAST_TURNS
        print_status(f"round {number}: {len(running)} candidates, {max(share, 0):.0f} s")
        for _ in range(turns):
            for candidate in running:
                if time.monotonic() >= deadline:
                    return
                _take_turn(path, candidate, is_last, share / (turns * len(running)))
        if is_last:
            return
        _drop_slow([candidate for candidate in running if not candidate.result], number)


def _take_turn(path: str, candidate: _Candidate, is_last: bool, slot: float) -> None:
    """Measure a candidate for some seconds, which include the start of its process."""
    if candidate.result:
        return
    until, variant = time.monotonic() + slot, candidate.variant
    try:
        document = run_apart(lambda: _measure(path, variant, until), TURN_LIMIT)
    except EdgepackError as error:
        candidate.result = f"failed: {error.what}: {error.why}"
        return
    turns = candidate.last if is_last else candidate.turns
    turns.append(cast("float", document["p50"]))


def _measure(path: str, variant: Variant, until: float) -> Dict[str, object]:
    """Return the median latency of a variant on the first reference sample."""
    from .verify import reference_feeds

    with Archive(path) as archive:
        model = _open(archive, variant)
        feed = next(reference_feeds(archive, model.index))
    remaining = max(0.0, until - time.monotonic())
    warm_up = min(WARM_UP_SECONDS, remaining / 4)
    times = time_calls(lambda: model.run(feed), FEWEST, remaining - warm_up, warm_up)
    return {"p50": median(times) / 1e6}


def _open(archive: Archive, variant: Variant) -> Model:
    from ..model import open_model

    # The only variant, so that no other replaces one that does not start.
    index = replace(read_index(archive), variants=(variant,))
    return open_model(archive, index, variant=variant.name)


def _drop_slow(running: Sequence[_Candidate], number: int) -> None:
    """Drop the slower half, but keep the first candidate, and enough for the last round."""
    if not running:
        return
    ranked = sorted(running[1:], key=lambda candidate: candidate.turns[-1])
    for candidate in ranked[max(FINALISTS, len(running) // 2) - 1 :]:
        candidate.result = f"dropped in round {number}: others are faster"


def _verify_best(
    path: str, candidates: Sequence[_Candidate]
) -> Tuple[_Candidate, _Candidate, Answers]:
    """Verify the fastest candidates until one passes the gates; write the reason for each loss.

    Returns the first candidate that runs, which needs no choice, the chosen one, and its answers.
    """
    running = [candidate for candidate in candidates if not candidate.result]
    if not running:
        reasons = [f"{describe_variant(c.variant)}: {c.result}" for c in candidates]
        raise DeviceError(
            "tune-failed",
            "no variant of the bundle runs on this device",
            why="\n".join(reasons),
            hint="python3 BUNDLE info",
        )
    first = running[0]
    ranked = [candidate for candidate in running[1:] if _is_faster(candidate, first)]
    ranked.sort(key=lambda candidate: -median(candidate.ratios(first)))
    chosen: Optional[Tuple[_Candidate, Answers]] = None
    for candidate in [*ranked, first]:
        if chosen is not None:
            candidate.result = "slower than the chosen"
            continue
        proof = _verify(path, candidate)
        if proof is not None:
            candidate.result = "chosen"
            chosen = candidate, proof
    if chosen is None:
        reasons = [f"{describe_variant(c.variant)}: {c.result}" for c in [*ranked, first]]
        raise GateError(
            "tune-gate-missed",
            "no candidate passed the gates, and none was sealed",
            why="\n".join(reasons),
            hint="python3 BUNDLE verify",
        )
    return (first, *chosen)


def _is_faster(candidate: _Candidate, first: _Candidate) -> bool:
    """Decide if a candidate is faster in every turn of the last round; else write why not."""
    ratios = candidate.ratios(first) if candidate.last else []
    if len(ratios) < 2:
        candidate.result = "not measured enough: the time was over"
        return False
    if min(ratios) > 1 and median(ratios) >= 1 + NOISE:
        return True
    candidate.result = "slower"
    if median(ratios) > 1:
        candidate.result = f"not faster by {NOISE:.0%} in every turn"
    return False


def _verify(path: str, candidate: _Candidate) -> Optional[Answers]:
    """Return a candidate's answers if they pass the gates; else write why not."""
    from .verify import on_samples

    def answer() -> Answers:
        with Archive(path) as archive:
            return on_samples(archive, _open(archive, candidate.variant))

    print_status(f"verifying {describe_variant(candidate.variant)}")
    try:
        proof = cast("Answers", run_apart(answer, VERIFY_LIMIT))
    except EdgepackError as error:
        candidate.result = f"failed: {error.what}: {error.why}"
        return None
    if proof["passed"]:
        return proof
    candidate.result = f"missed a gate: {'; '.join(list_missed(proof))}"
    return None


def describe_report(report: TuneDocument) -> List[str]:
    """Return the text of a report: all candidates, the gates, and the sealed file."""
    lines = describe_candidates(report["candidates"])
    if report["tuned"]:
        lines += describe_proof(cast("Answers", report))
        lines.append(f"sealed: {report['seal']}")
    else:
        lines.append(f"already tuned: {report['seal']} is for this bundle, CPU and engines")
    return [*lines, *[f"{report['verdict']}: {reason['text']}" for reason in report["reasons"]]]
