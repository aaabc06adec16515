"""One closeness figure for every kind of output."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgepack.metrics.closeness import closeness_db

NAN = float("nan")


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"compared": "equality", "top1_agreement": 0.99}, 20.0),
        ({"compared": "equality", "top1_agreement": 1.0}, math.inf),
        ({"compared": "equality", "top1_agreement": None}, math.inf),
        ({"compared": "equality", "top1_agreement": NAN}, -math.inf),
        ({"compared": "values", "snr_db": 41.5}, 41.5),
        ({"compared": "values", "snr_db": None}, math.inf),
        ({"compared": "values", "snr_db": NAN}, -math.inf),
        ({"compared": "values", "snr_db": 41.5, "nonfinite": 1}, -math.inf),
    ],
)
def test_a_figure_that_is_not_a_number_is_never_exact(
    metrics: dict[str, Any], expected: float
) -> None:
    assert closeness_db(metrics) == pytest.approx(expected)
