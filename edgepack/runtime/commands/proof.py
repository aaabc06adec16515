"""Text on the gates that must pass before something is sealed beside the bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, Optional, Tuple

from ..parity.gates import describe_gate

if TYPE_CHECKING:
    from ..documents import Answers, Gate, Question


def list_questions(proof: Answers) -> List[Optional[Question]]:
    """Return the questions that decide the verdict."""
    return [proof["preprocessing"], proof["quality"], proof["fidelity"]]


def describe_proof(proof: Answers) -> List[str]:
    """Return a line on every gate, after the name of its question."""
    return [f"{question}: {describe_gate(gate)}" for question, gate in _gates(proof)]


def list_missed(proof: Answers) -> List[str]:
    """Return the lines on the missed gates."""
    missed = []
    for question, gate in _gates(proof):
        if not gate["passed"]:
            missed.append(f"{question}: {describe_gate(gate)}")
    return missed


def _gates(proof: Answers) -> Iterator[Tuple[str, Gate]]:
    questions = {
        "preprocessing": proof["preprocessing"],
        "fidelity": proof["fidelity"],
        "quality": proof["quality"],
    }
    for name, question in questions.items():
        if question is not None:
            for gate in question["gates"]:
                yield name, gate
