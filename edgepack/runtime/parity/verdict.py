"""Verdict on a bundle: PASS, FAIL, or UNVERIFIED where passed gates would prove too little."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from .gates import describe_gate

if TYPE_CHECKING:
    from ..bundle.index import Index
    from ..documents import Gate, PlacementDocument, Question, Reason

PASS, FAIL, UNVERIFIED = "PASS", "FAIL", "UNVERIFIED"
# Codes of the reasons for UNVERIFIED.
RANDOM, NOT_ON_TARGET, NOT_GATED = "random-samples", "not-on-target", "not-gated"
MISSED = "gate-missed"
RANDOM_TEXT = "calibrated on or judged by random samples: quality on real inputs is unknown"


def list_doubts(index: Index, stand_in: bool = False, fallback: str = "") -> List[Reason]:
    """Return the reasons for which a bundle cannot get the verdict PASS.

    Args:
        index: of the bundle.
        stand_in: this machine computed the answers in place of the target.
        fallback: name of the variant that ran instead of the best one, which does not run here;
            "" for none, or if the user chose it.
    """
    doubts: List[Reason] = []
    if not index.proven:
        doubts.append({"code": RANDOM, "text": RANDOM_TEXT})
    if stand_in:
        text = "the build host stood in for the target"
        doubts.append({"code": NOT_ON_TARGET, "text": text})
    elif fallback:
        # A Jetson whose TensorRT cannot be imported: the right answers, from the wrong engine.
        best = index.variants[0].name
        text = f"the fallback {fallback} ran, and {best} did not; --variant {fallback} accepts it"
        doubts.append({"code": NOT_ON_TARGET, "text": text})
    return doubts


def decide(
    questions: Sequence[Optional[Question]],
    doubts: Sequence[Reason],
    placement: Optional[PlacementDocument] = None,
) -> Tuple[str, List[Reason]]:
    """Return the verdict and its reasons; a missed gate outweighs a doubt.

    Args:
        questions: preprocessing, quality and fidelity; None for one that does not arise, such as
            fidelity in a draft.
        doubts: result of `list_doubts`.
        placement: part of the model on a GPU; None for a CPU, and if it is unknown.
    """
    missed: List[Reason] = []
    open_reasons = list(doubts)
    for question in questions:
        if question is None:
            continue
        # "Every gate passed" says nothing if there is none.
        if not question["gates"]:
            text = "no gate applies to quality or to fidelity"
            open_reasons.append({"code": NOT_GATED, "text": text})
        elif not question["passed"]:
            missed += _list_missed(question["gates"])
    if placement is not None:
        missed += _list_missed(placement["gates"])
    if missed:
        return FAIL, missed + open_reasons
    if open_reasons:
        return UNVERIFIED, open_reasons
    return PASS, []


def _list_missed(gates: Sequence[Gate]) -> List[Reason]:
    # "FAIL scores: ..." without the word itself, which the verdict has already.
    return [
        {"code": MISSED, "text": describe_gate(gate)[5:]} for gate in gates if not gate["passed"]
    ]
