"""Layers that stay float because int8 costs them time.

Each layer has a time in the float graph and in the int8 graph, and every change between the two
along the network costs a conversion. The assignment with the least total is the shortest path
through a trellis of two rows, such as for three layers and a conversion of 5 us:

    float   24 -  13 -  50
    int8    12 -  20 -  15      float is best for no layer: 12 + 5 + 13 + 5 + 15 is 50, int8 47
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# Share of the int8 graph's time that float layers have to save to be worth a candidate.
LEAST_GAIN = 0.03


def choose_floats(
    floats: Mapping[str, float], integers: Mapping[str, float], conversion: float
) -> tuple[str, ...]:
    """Return the layers that stay float; empty if int8 pays for all, or for none of them.

    Args:
        floats: microseconds by layer in the float graph.
        integers: microseconds by layer in the int8 graph, in the order in which layers run.
        conversion: microseconds of a change between float and int8.
    """
    names = [name for name in integers if name in floats]
    if not names:
        return ()
    path, total = _find_path([(floats[name], integers[name]) for name in names], conversion)
    saved = sum(integers[name] for name in names) - total
    chosen = tuple(name for name, is_float in zip(names, path, strict=True) if is_float)
    if len(chosen) == len(integers) or saved < LEAST_GAIN * sum(integers.values()):
        return ()
    return chosen


def _find_path(times: Sequence[tuple[float, float]], conversion: float) -> tuple[list[bool], float]:
    """Return True for each layer that is float on the shortest path, and the path's length."""
    # The input of the network is float: the first int8 layer pays for its conversion in its time.
    best: tuple[float, float] = (0.0, 0.0)
    steps: list[tuple[bool, bool]] = []
    for as_float, as_integer in times:
        # Where the best path to each row came from: True for float.
        from_float = (best[0] <= best[1] + conversion, best[0] + conversion < best[1])
        best = (
            as_float + min(best[0], best[1] + conversion),
            as_integer + min(best[1], best[0] + conversion),
        )
        steps.append(from_float)
    total = min(best)
    is_float = best[0] < best[1]
    path: list[bool] = []
    for to_float, to_integer in reversed(steps):
        path.append(is_float)
        is_float = to_float if is_float else to_integer
    path.reverse()
    return path, total if math.isfinite(total) else 0.0
