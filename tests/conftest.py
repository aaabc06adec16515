"""What holds for every test: its signals, its threads, its cache."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# What was started in the background ignores interrupts, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests that run side by side take one core each: more threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Modules with fixtures.
pytest_plugins = (
    "support.build_cases",
    "support.audio_cases",
    "support.bundle_cases",
    "support.code_cases",
    "support.emulation",
    "support.gpu_standin",
    "support.linear",
    "support.picture_cases",
    "support.serving",
    "support.ssh_server",
    "support.text_cases",
    "support.training_cases",
)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep tests away from the user's cache and policy."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder.with_name("config")))
        patch.delenv("EDGEPACK_SIGNERS", raising=False)
        yield folder
