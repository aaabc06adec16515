"""Round real weights to s8: to the nearest, or so that later weights compensate earlier errors.

Both obey the pair limit: without VNNI, x86's `vpmaddubsw` adds two neighbouring u8 x s8 products
in 16 bits, and 255 * (w0 + w1) fits only while the same-sign sum is at most 128 in magnitude
(255 * 128 = 32,640 < 32,767).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HIGHEST = 127
PAIR_LIMIT = 128
# Pair limit before rounding.
PAIR_STEPS = 127.5
# Columns that are rounded between two matrix products; even, so that no pair is cut.
BLOCK = 64
DAMPING = 1e-2


def round_to_nearest(steps: np.ndarray, paired: bool, lowest: int = -128) -> np.ndarray:
    """Round every weight to the nearest step; pairs over the limit shrink evenly.

    Example: the pair (100, 60) exceeds the limit of 128 by 32 and becomes (84, 44).


    Args:
        steps: (..., K) weights divided by their scale.
        paired: whether pairs along K are limited.
        lowest: integer.

    Returns:
        (..., K) whole numbers within s8, as float64.
    """
    rounded = np.asarray(np.clip(np.rint(steps), lowest, HIGHEST))
    if not paired:
        return rounded
    width = steps.shape[-1] // 2 * 2
    for k in range(0, width, 2):
        # Both weights take half of the excess.
        half = np.ones(1) * 0.5
        first = _round_first(steps[..., k], steps[..., k + 1], half, lowest)
        rounded[..., k] = first
        rounded[..., k + 1] = _round_second(first, steps[..., k + 1], lowest)
    return rounded


@dataclass(frozen=True)
class Feedback:
    """Factorization of the loss e^T H e of a rounding error e: |D F^T e|^2.

    H = (F D) (F D)^T with F upper triangular and ones on its diagonal. Column k of F tells how far
    weight k has to move to compensate the errors of the weights before it.

    Attributes:
        weights: (groups, K, K) the factor F.
        pivots: (groups, K) the diagonal D.
    """

    weights: np.ndarray
    pivots: np.ndarray


def factorize(hessian: np.ndarray, damping: float = DAMPING) -> Feedback:
    """Factorize (groups, K, K) second moments, once for every scale and row of a layer.

    In float32, as the damping is far above its rounding errors. It takes K^3 / 3 multiplications,
    and no inverse: read backwards along both axes, H = L L^T becomes the product of two upper
    triangles.
    """
    damped = np.array(hessian[:, ::-1, ::-1], dtype=np.float32)
    diagonal = np.einsum("gkk->gk", damped)
    mean = diagonal.mean(axis=1, keepdims=True)
    # If a layer reads only zeros, any rounding is as good as another.
    diagonal += np.where(mean > 0, damping * mean, 1.0)
    try:
        upper = np.linalg.cholesky(damped)[:, ::-1, ::-1]
    except np.linalg.LinAlgError:
        # With few samples and many inputs, rounding errors of the sums exceed the damping.
        return factorize(hessian, 10 * damping)
    pivots = np.ascontiguousarray(np.einsum("gkk->gk", upper))
    return Feedback(np.divide(upper, pivots[:, None, :], order="C"), pivots)


def round_compensated(
    steps: np.ndarray, feedback: Feedback, paired: bool, lowest: int = -128
) -> tuple[np.ndarray, np.ndarray]:
    """Round so that the error of the layer's output is small (GPTQ).

    Frantar et al., "GPTQ: accurate post-training quantization" (2022): columns are rounded in
    order, and later columns compensate the error of each. Chee et al., "QuIP" (2023, arXiv:
    2307.13304) show that this equals feedback by the factor of the Hessian itself, which needs no
    inverse: column k is rounded from w_k - sum_{j<k} e_j F_jk, with e the errors so far. The pair
    limit applies within: a pair's excess over it is split so that the loss grows least, and is
    compensated by later columns as well.

    Args:
        steps: (groups, rows, K) weights divided by their scale.
        feedback: of (groups, K, K).
        paired: whether pairs along K are limited.
        lowest: integer.

    Returns:
        (groups, rows, K) whole numbers within s8, as float32, and (groups, rows) their loss.
    """
    # Columns are contiguous in (groups, K, rows).
    exact = np.ascontiguousarray(steps.transpose(0, 2, 1), dtype=np.float32)
    groups, width, count = exact.shape
    errors = np.zeros_like(exact)
    rounded = np.empty_like(exact)
    loss = np.zeros((groups, count), dtype=np.float32)
    weights, pivots = feedback.weights, feedback.pivots
    # All earlier blocks act on a block by one matrix product, which is faster than one for each
    # column.
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        targets: np.ndarray = exact[:, start:stop]
        if start:
            earlier = weights[:, :start, start:stop].transpose(0, 2, 1)
            targets = targets - earlier @ errors[:, :start]
        for k in range(start, stop, 2):
            end = min(k + 2, stop)
            target: np.ndarray = targets[:, k - start : end - start]
            if k > start:
                inner = weights[:, start:k, k:end].transpose(0, 2, 1)
                target = target - inner @ errors[:, start:k]
            single = end == k + 1
            first = target[:, 0]
            if paired and not single:
                share = _split_excess(feedback, k)[:, None]
                value = _round_first(first, target[:, 1], share, lowest)
            else:
                value = np.clip(np.rint(first), lowest, HIGHEST)
            rounded[:, k] = value
            errors[:, k] = value - exact[:, k]
            loss += np.square(pivots[:, k, None] * (value - first))
            if single:
                continue
            second = target[:, 1] - errors[:, k] * weights[:, k, k + 1, None]
            if paired:
                value = _round_second(value, second, lowest)
            else:
                value = np.clip(np.rint(second), lowest, HIGHEST)
            rounded[:, k + 1] = value
            errors[:, k + 1] = value - exact[:, k + 1]
            loss += np.square(pivots[:, k + 1, None] * (value - second))
    return rounded.transpose(0, 2, 1), loss


def _split_excess(feedback: Feedback, k: int) -> np.ndarray:
    """Return (groups,) the first weight's share of a pair's excess, at the least loss.

    With pivots a, c and the factor's f between them, errors (e, 1 - e) of the pair cost
    a^2 e^2 + c^2 (1 - e + f e)^2 once later columns have compensated them.
    """
    first, second = feedback.pivots[:, k] ** 2, feedback.pivots[:, k + 1] ** 2
    rest = 1 - feedback.weights[:, k, k + 1]
    return np.asarray(np.clip(second * rest / (first + second * rest**2), 0.0, 1.0))


def _round_first(
    first: np.ndarray, second: np.ndarray, share: np.ndarray, lowest: int
) -> np.ndarray:
    """Round the first weight of a pair, less its share of the excess."""
    # Pairs of opposite signs cancel and have no excess.
    sign = np.sign(first)
    excess = np.where(np.sign(second) == sign, np.abs(first + second) - PAIR_LIMIT, 0.0)
    reduction = np.clip(share * np.maximum(excess, 0.0), 0.0, np.abs(first))
    return np.asarray(np.clip(np.rint(first - sign * reduction), lowest, HIGHEST))


def _round_second(first: np.ndarray, second: np.ndarray, lowest: int) -> np.ndarray:
    """Round the second weight of a pair, within the limit that the first leaves."""
    # After a first weight of 100 the second may be at most 28; its lower limit stays -128, as only
    # products of one sign add up.
    highest = np.where(first > 0, np.minimum(HIGHEST, PAIR_LIMIT - first), HIGHEST)
    least = np.where(first < 0, np.maximum(lowest, -PAIR_LIMIT - first), lowest)
    return np.asarray(np.clip(np.rint(second), least, highest))


def find_largest_pairs(rows: np.ndarray) -> np.ndarray:
    """Return (outputs,) the largest same-sign sum of neighbouring columns, in magnitude.

    Example: (3, 4, -5, 1) has the pairs (3, 4) and (-5, 1), with sums 7 and 5, so 7 is returned.
    """
    # The last of an odd number of columns is added to 0.
    if rows.shape[-1] % 2:
        rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], 1))], axis=-1)
    pairs = rows.reshape(*rows.shape[:-1], -1, 2)
    positive = np.maximum(pairs, 0).sum(axis=-1)
    negative = np.maximum(-pairs, 0).sum(axis=-1)
    return np.asarray(np.maximum(positive, negative).max(axis=-1))
