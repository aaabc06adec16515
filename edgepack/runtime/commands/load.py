"""Measure the load that other processes put on the machine during a benchmark."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, List, Optional, Sequence

from ..device.machine import allowed_cores

if TYPE_CHECKING:
    from ..documents import Load

STAT = "/proc/stat"
# Columns of /proc/stat that count as busy: user, nice, system, irq, softirq and steal. Idle and
# iowait do not, and the guests' time is already part of user and nice:
#
#     cpu0 4705 150 1120 16250 520 30 45 12 0 0
#          user nice system idle iowait irq softirq steal guest guest_nice
BUSY = (0, 1, 2, 5, 6, 7)
# Cores that other processes may use without a warning, plus a share of the cores that the timed
# code leaves idle: with 8 cores and 2 threads they may use 0.2 + 0.5 * 6 = 3.2 cores.
TAKEN, OF_IDLE = 0.2, 0.5
# Largest round over smallest, less one, that still counts as steady.
SPREAD = 0.2
# Load average per core that counts as busy on systems without per-core counters.
LOAD = 1.5


class LoadMonitor:
    """Measures the load of this process's cores, from its creation on.

    Args:
        path: file with the kernel's counters.
    """

    def __init__(self, path: str = STAT) -> None:
        self._path = path
        self._cores = allowed_cores()
        self._before = load_average()
        self._busy = busy_seconds(self._cores, path)
        self._own = _own_seconds()
        self._started = os.times().elapsed

    def result(self) -> Load:
        """Return the load so far.

        `before` and `after` are load averages of a minute, `cores` the number of cores, `others`
        the average number of them that other processes used. Each is None if the system does not
        provide it.
        """
        busy = busy_seconds(self._cores, self._path)
        others = None
        elapsed = os.times().elapsed - self._started
        if busy is not None and self._busy is not None and elapsed > 0:
            # Cores busy for 3.0 s, of which 2.0 s in this process and its children, over 2 s
            # of wall-clock time: others used (3.0 - 2.0) / 2 = 0.5 cores.
            own = _own_seconds() - self._own
            others = round(max(0.0, busy - self._busy - own) / elapsed, 2)
        return {
            "before": self._before,
            "after": load_average(),
            "cores": len(self._cores),
            "others": others,
        }


def disturbances(load: Load, spread: float, threads: int) -> List[str]:
    """Return the reasons not to trust a measured latency, in words; empty on a quiet machine.

    Args:
        load: the result of `LoadMonitor.result`.
        spread: of the rounds: largest over smallest, less one.
        threads: of the timed code; 0 for every physical core.
    """
    cores, reasons = load["cores"], []
    # With 0 threads the timed code uses every core and leaves none idle.
    idle = 0
    if threads:
        idle = max(0, cores - threads)
    if load["others"] is None:
        if load["after"] is not None and load["after"] > LOAD * cores:
            reasons.append(f"load {load['after']:.1f} on {_plural(cores)}")
    elif load["others"] > TAKEN + OF_IDLE * idle:
        average = ""
        if load["after"] is not None:
            average = f", load {load['after']:.1f}"
        reasons.append(f"other processes used {load['others']:.1f} of {_plural(cores)}{average}")
    if spread > SPREAD:
        reasons.append(f"rounds differ by {100 * spread:.0f} %")
    return reasons


def spread_of(rounds: Sequence[float]) -> float:
    """Return the largest over the smallest of some positive figures, less one."""
    return max(rounds) / min(rounds) - 1.0


def load_average() -> Optional[float]:
    """Return the load average of the last minute; None if the system does not provide it."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def busy_seconds(cores: Sequence[int], path: str = STAT) -> Optional[float]:
    """Return the busy time of some cores since boot, in seconds; None if it is unknown."""
    names = {f"cpu{core}" for core in cores}
    ticks = lines = 0
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                # "cpu" sums all cores, "cpu0" is the first one.
                name, *fields = line.split()
                if name in names:
                    ticks += sum(int(fields[column]) for column in BUSY)
                    lines += 1
        return ticks / os.sysconf("SC_CLK_TCK") if lines else None
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _own_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _plural(cores: int) -> str:
    return f"{cores} core{'s' * (cores != 1)}"
