"""Choice of the winner among measured candidates, with the reason of every other one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgepack.runtime.bundle.engines import BF16, ONNXRUNTIME
from edgepack.spec.objective import LATENCY, MEMORY, SIZE, Objective
from edgepack.stages.auction.candidate import Candidate

# Share by which a form may measure slower than fp32 and still not count as slower, however noisy
# the machine is.
TOLERANCE = 0.03


@dataclass
class Bid:
    """Candidate with its costs.

    Attributes:
        candidate: the candidate.
        cost: of one inference; infinity if it does not run.
        memory: peak memory in bytes; 0 if it is unknown.
        reason: reason why it did not win; "" while it may.
        quantity: what the cost counts, in words: "time" or "instructions".
        score: of the objective, against fp32; smaller is better.
    """

    candidate: Candidate
    cost: float
    memory: int = 0
    reason: str = ""
    quantity: str = "time"
    score: float = field(default=math.inf, init=False)


def choose(
    bids: Sequence[Bid], objective: Objective, noise: float, judge: Callable[[Bid], Sequence[str]]
) -> Bid | None:
    """Return the best bid that holds the gates, None if none does; write the others' reasons.

    Bids within the noise of the best are equal. Of these the smallest file wins, then onnxruntime,
    then float32, so that a repeated build decides alike.

    Args:
        bids: the first is fp32 in the profile's engine, which the others are compared with.
        objective: weights of the costs.
        noise: share by which measured costs of equal candidates differ.
        judge: returns the gates that a bid misses, in words.
    """
    base = bids[0]
    for bid in bids:
        _enter(bid, base, objective, noise)
    judged: dict[int, bool] = {}

    def holds(bid: Bid) -> bool:
        if id(bid) not in judged:
            missed = judge(bid)
            judged[id(bid)] = not missed
            if missed:
                bid.reason = f"misses {', '.join(missed)}"
        return judged[id(bid)]

    eligible = sorted((bid for bid in bids if not bid.reason), key=lambda bid: bid.score)
    best = next(filter(holds, eligible), None)
    if best is None:
        return None
    # A difference in latency or memory may be noise; bytes are exact.
    weights = objective.weights
    margin = noise * (weights.get(LATENCY, 0.0) + weights.get(MEMORY, 0.0))
    equal = [bid for bid in eligible if not bid.reason and bid.score <= best.score + margin]
    winner = next(filter(holds, sorted(equal, key=_prefer)))
    for bid in eligible:
        if bid is winner or bid.reason:
            continue
        if bid in equal:
            bid.reason = f"as good within the noise of {100 * noise:.0f} %, but not preferred"
        else:
            bid.reason = _describe_loss(bid, winner, objective)
    return winner


def _enter(bid: Bid, base: Bid, objective: Objective, noise: float) -> None:
    """Set the score of a bid, or the reason why it cannot win."""
    if bid.reason:
        return
    if not bid.candidate.competes:
        bid.reason = "compared with only: the chain was requested"
        return
    larger = bid.candidate.bytes > base.candidate.bytes
    # Who requested an objective pays for it; nobody else gets a slower or a larger network.
    guarded = bid is not base and not objective.requested and base.candidate.competes
    if guarded and bid.cost > base.cost * (1 + min(noise, TOLERANCE)):
        bid.reason = f"{bid.cost / base.cost:.2f} times the {bid.quantity} of fp32"
        return
    if guarded and larger:
        bid.reason = f"{bid.candidate.bytes / base.candidate.bytes:.2f} times the bytes of fp32"
        return
    memory = bid.memory / base.memory if bid.memory and base.memory else 1.0
    sizes = bid.candidate.bytes / base.candidate.bytes
    bid.score = objective.score({LATENCY: bid.cost / base.cost, SIZE: sizes, MEMORY: memory})


def _prefer(bid: Bid) -> tuple[int, bool, bool, float]:
    variant = bid.candidate.variant
    other = variant.engine != ONNXRUNTIME
    return bid.candidate.bytes, other, variant.settings.precision == BF16, bid.score


def _describe_loss(bid: Bid, winner: Bid, objective: Objective) -> str:
    if objective.weights.keys() == {LATENCY}:
        return f"{bid.cost / winner.cost:.2f} times the {bid.quantity} of the winner"
    factor = math.exp(bid.score - winner.score)
    return f"{factor:.2f} times the winner's cost by {objective}"
