"""Tests that need a GPU. Where there is none they skip, and the reason is found out once, here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import on_gpu


@pytest.fixture(autouse=True, scope="session")
def a_gpu() -> None:
    """Skip everything here where nothing can run on a GPU."""
    reason = on_gpu.why_not()
    if reason:
        pytest.skip(reason)
