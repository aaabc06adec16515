"""What else runs while something is timed, and from when on that disturbs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgepack.runtime.commands.load import (
    LoadMonitor,
    busy_seconds,
    disturbances,
    load_average,
    spread_of,
)
from edgepack.runtime.device.machine import allowed_cores


def load(others: float | None, after: float | None = 0.5, cores: int = 2) -> dict[str, Any]:
    return {"before": 0.1, "after": after, "cores": cores, "others": others}


@pytest.mark.parametrize(
    ("measured", "spread", "threads", "reasons"),
    [
        (load(0.05), 0.03, 0, []),
        (load(1.3, 3.9), 0.03, 0, ["other processes used 1.3 of 2 cores, load 3.9"]),
        (load(1.0, None, 1), 0.0, 1, ["other processes used 1.0 of 1 core"]),
        (load(0.05), 0.38, 0, ["rounds differ by 38 %"]),
        (load(0.5, 2.0), 0.5, 2, ["other processes used 0.5 of 2 cores, load 2.0",
                                  "rounds differ by 50 %"]),
        # What runs on cores that one thread leaves idle disturbs little.
        (load(1.5, cores=8), 0.02, 1, []),
        (load(1.5, cores=8), 0.02, 0, ["other processes used 1.5 of 8 cores, load 0.5"]),
        # Where the system counts nothing, the load average decides.
        (load(None, 3.9), 0.0, 0, ["load 3.9 on 2 cores"]),
        (load(None, 2.1), 0.0, 0, []),
        (load(None, None), 0.0, 0, []),
    ],
)  # fmt: skip
def test_what_counts_as_disturbed(
    measured: dict[str, Any], spread: float, threads: int, reasons: list[str]
) -> None:
    assert disturbances(measured, spread, threads) == reasons


def test_the_spread_is_that_of_the_extremes() -> None:
    assert spread_of([2.0, 3.0, 2.4]) == pytest.approx(0.5)
    assert spread_of([1.7]) == 0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="not Linux")
def test_another_process_is_seen() -> None:
    monitor = LoadMonitor()
    # It ends by itself, and is waited for after the measurement alone.
    code = "import time\nend = time.time() + 0.8\nwhile time.time() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.7)
    found = monitor.result()
    busy.wait()
    assert found["cores"] == len(allowed_cores())
    assert found["others"] > 0.3
    assert found["before"] == pytest.approx(found["after"], abs=2)


def test_what_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    assert busy_seconds([0], str(tmp_path / "nothing")) is None
    broken = tmp_path / "stat"
    broken.write_text("cpu0 1 2\ncpu1 x\n")
    assert busy_seconds([0], str(broken)) is None
    assert busy_seconds([7], str(broken)) is None
    assert LoadMonitor(str(broken)).result()["others"] is None


def test_time_of_guests_and_of_waiting_is_not_counted(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9\ncpu0 100 0 50 9000 900 0 0 50 70 0\ncpu1 1 1 1 1 1 1 1 1 1 1\n")
    assert busy_seconds([0], str(stat)) == pytest.approx(2.0)
    still = LoadMonitor(str(stat))
    assert still.result()["others"] in (None, 0.0)
    assert load_average() is None or load_average() >= 0
