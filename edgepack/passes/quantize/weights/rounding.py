"""Round real weights to s8: to the nearest, or so that later weights compensate earlier errors.

Both obey the pair limit: without VNNI, x86's `vpmaddubsw` adds two neighbouring u8 x s8 products
in 16 bits, and 255 * (w0 + w1) fits only while the same-sign sum is at most 128 in magnitude
(255 * 128 = 32,640 < 32,767).
"""

from __future__ import annotations

import numpy as np

HIGHEST = 127
PAIR_LIMIT = 128
# Pair limit before rounding.
PAIR_STEPS = 127.5
BLOCK = 128
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


def round_compensated(
    steps: np.ndarray, factor: np.ndarray, paired: bool, lowest: int = -128
) -> np.ndarray:
    """Round so that the error of the layer's output is small (GPTQ).

    Frantar et al., "GPTQ: accurate post-training quantization" (2022): columns are rounded in
    order, and later columns compensate the error of each, by the Cholesky factor of the inverse
    Hessian. The pair limit applies within: a pair's excess over it is split so that the loss grows
    least, and is compensated by later columns as well.

    Args:
        steps: (groups, rows, K) weights divided by their scale.
        factor: (groups, K, K) from `factor_inverse`.
        paired: whether pairs along K are limited.
        lowest: integer.

    Returns:
        (groups, rows, K) whole numbers within s8, as float64.
    """
    width = steps.shape[-1]
    remaining = np.array(steps, dtype=np.float64)
    rounded = np.empty_like(remaining)
    # Errors reach the columns of their block at once, and those behind it when the block is done:
    # one matrix product for each block is faster than one update for each column.
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = np.zeros((*remaining.shape[:2], stop - start))
        for k in range(start, stop):
            pivot = factor[:, k, k][:, None]
            column = remaining[:, :, k]
            if not paired or (k % 2 == 0 and k + 1 == width):
                value = np.clip(np.rint(column), lowest, HIGHEST)
            elif k % 2 == 0:
                share = _split_excess(factor, k)[:, None]
                value = _round_first(column, remaining[:, :, k + 1], share, lowest)
            else:
                value = _round_second(rounded[:, :, k - 1], column, lowest)
            rounded[:, :, k] = value
            # Dividing by the pivot gives the error per unit of the factor's row.
            error = (column - value) / pivot
            errors[:, :, k - start] = error
            remaining[:, :, k + 1 : stop] -= error[:, :, None] * factor[:, None, k, k + 1 : stop]
        remaining[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return rounded


def factor_inverse(hessian: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Return (groups, K, K) the upper factor U of the damped Hessian's inverse, U^T U.

    With H = L' L'^T read backwards (both axes reversed), U is the reversed inverse of L'.
    """
    damped = np.array(hessian, dtype=np.float64)
    diagonal = np.einsum("gkk->gk", damped)
    mean = diagonal.mean(axis=1, keepdims=True)
    # If a layer reads only zeros, any rounding is as good as another.
    diagonal += np.where(mean > 0, damping * mean, 1.0)
    try:
        lower = np.linalg.cholesky(damped[:, ::-1, ::-1])
    except np.linalg.LinAlgError:
        # With few samples and many inputs, rounding errors of the sums exceed the damping.
        return factor_inverse(hessian, 10 * damping)
    return np.ascontiguousarray(np.linalg.inv(lower)[:, ::-1, ::-1])


def _split_excess(factor: np.ndarray, k: int) -> np.ndarray:
    """Return (groups,) the first weight's share of a pair's excess, at the least loss.

    With I the inverse Hessian of the remaining columns, the loss e^T inv(I[:2,:2]) e under
    e0 + e1 = 1 is least at e = I[:2,:2] 1 / (1^T I[:2,:2] 1).
    """
    a, b, c = factor[:, k, k], factor[:, k, k + 1], factor[:, k + 1, k + 1]
    first, cross, second = a * a, a * b, b * b + c * c
    return np.asarray(np.clip((first + cross) / (first + 2 * cross + second), 0.0, 1.0))


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
