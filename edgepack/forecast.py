"""Forecast of a build's time: by its own stages so far, and by an earlier build of the same model.

The seconds of every computed stage stay in the cache's folder, in `timings/`. A first build of a
model has no such record; its stages are in proportion to those of a typical build.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgepack import passes
from edgepack.cache import TIMINGS, digest
from edgepack.ledger import STAGES_AFTER, Record
from edgepack.runtime.device.machine import peak_rss

if TYPE_CHECKING:
    from edgepack.request import Request

# Seconds of the stages of EfficientNet-Lite0 with 1,040 samples on two cores. A stage that is not
# here, such as a training, takes any time.
TYPICAL = {
    "source": 1.0,
    "samples": 3.0,
    "original": 10.0,
    "export": 5.0,
    "simplify": 6.0,
    "auction": 12.0,
    "engine": 0.1,
    "bundle": 1.5,
    "verify": 4.0,
    "emulate": 5.0,
    "variants": 20.0,
    "latency": 8.0,
}
# Seconds of a pass on the graph, as quantize takes on that network.
GRAPH_PASS = 25.0
# Seconds of both models together for each length of the latency run, with their starts.
LATENCY = {"smoke": 8.0, "quick": 25.0, "normal": 125.0}
# Stages whose time does not depend on the model or on the number of samples.
FIXED = frozenset(("bundle", "emulate", "variants", "latency"))
# Stages that compute something in every build.
UNCACHED = frozenset(("source", "samples", "wheels", "engine", "verify")) | FIXED
# Seconds of a stage that comes from the cache.
CACHED_SECONDS = 0.3
# Typical seconds that must be measured before a forecast without an earlier build.
ENOUGH = 10.0
# Weight, in seconds, of an earlier build against the speed of this one.
TRUST = 10.0
# Bounds of the ratio of a build's speed to the expected one.
SLOWEST, FASTEST = 50.0, 0.02
# Share of its own time that a stage is expected to take still, once it has exceeded the expected.
OVERDUE = 0.25
# Seconds in which the forecast closes most of the gap to a later and to an earlier end, so that it
# does not jump.
LATER, EARLIER = 8.0, 3.0


# Key of the peak of resident memory beside the seconds of the stages.
_PEAK = "peak bytes"


def measured_needs(request: Request) -> tuple[float, int] | None:
    """Return the seconds and the peak bytes of an earlier build; None if there was none."""
    earlier = _read(_timings_file(request))
    if _PEAK not in earlier:
        return None
    peak = earlier.pop(_PEAK)
    return sum(earlier.values()), int(peak)


def expected_seconds(request: Request) -> tuple[dict[str, float], bool]:
    """Return the seconds of stages, and True if an earlier build of the model measured them."""
    earlier = _read(_timings_file(request))
    earlier.pop(_PEAK, None)
    latency = {"latency": LATENCY.get(request.latency, 0.0)}
    chain = {step.name: GRAPH_PASS for step in passes.select_domain("graph", request.chain)}
    return {**TYPICAL, **chain, **latency, **earlier}, bool(earlier)


def store_seconds(request: Request, records: Iterable[Record]) -> None:
    """Store the seconds of a build's computed stages, and its memory, for the next build."""
    path = _timings_file(request)
    seconds = _read(path)
    for record in records:
        # A cached stage takes no time, and a failed one took part of it.
        if record.status == "done":
            seconds[record.stage] = round(record.seconds, 2)
    # A build from the cache needs less.
    seconds[_PEAK] = max(seconds.get(_PEAK, 0), peak_rss() or 0)
    # A cache that cannot be written costs a forecast, and no build. Nor does a file that is written
    # in part, since a damaged one is ignored.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(seconds, sort_keys=True), encoding="utf-8")


def _timings_file(request: Request) -> Path:
    samples = []
    for role in (request.calibration, request.evaluation, request.training):
        # Objects of Python have no name that a later build would find again.
        samples.append(role if isinstance(role, str) else "python")
    model = request.name
    if isinstance(request.model, Path):
        model = str(request.model.absolute())
    parts = {
        "model": model,
        "target": request.target.name,
        "chain": [step.name for step in request.chain],
        "samples": samples,
        "latency": request.latency,
    }
    return request.cache / TIMINGS / f"{digest(parts)[:32]}.json"


def _read(path: Path) -> dict[str, float]:
    """Return the seconds by stage in a file; empty if it is missing or damaged."""
    seconds: dict[str, float] = {}
    with suppress(OSError, ValueError):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict):
            for stage, value in document.items():
                if isinstance(value, (int, float)) and 0 <= value < math.inf:
                    seconds[stage] = float(value)
    return seconds


def forecast(request: Request, stages: Sequence[str]) -> TimeLeft:
    """Return the forecast of a build with these stages, and those that the last build had besides.

    A repair and the verification of further engines are not planned: they follow from results.
    """
    earlier = _read(_timings_file(request))
    coming = [stage for stage in stages if stage not in STAGES_AFTER]
    coming += [stage for stage in STAGES_AFTER if stage in stages or stage in earlier]
    return TimeLeft(coming, *expected_seconds(request))


class TimeLeft:
    """Forecast of the seconds until a build ends, from the events of its progress.

    Without stages there is no forecast.

    Args:
        stages: names of the stages to come, in order.
        expected: seconds by stage.
        measured: True if an earlier build measured them; otherwise only their proportions count.
        clock: returns seconds.
    """

    def __init__(
        self,
        stages: Sequence[str] = (),
        expected: Mapping[str, float] = MappingProxyType({}),
        measured: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coming = list(stages)
        self._expected, self._measured, self._clock = expected, measured, clock
        # Open stages; only the outermost counts.
        self._open: list[str] = []
        self._begun = 0.0
        self._done, self._total = 0, 0
        # Seconds of the computed stages so far, and those expected of them.
        self._spent, self._foreseen = 0.0, 0.0
        self._from_cache = False
        # The smoothed forecast, and the time that it was made for.
        self._shown: float | None = None
        self._shown_at = 0.0

    def begin(self, stage: str, total: int | None = None) -> None:
        """Begin a stage of `total` steps."""
        self._open.append(stage)
        if len(self._open) > 1:
            return
        self._begun = self._clock()
        self._done, self._total = 0, total or 0
        if stage in self._coming:
            del self._coming[: self._coming.index(stage) + 1]

    def advance(self, steps: int = 1) -> None:
        """Count further steps of the current stage as done."""
        self._done += steps

    def expect(self, total: int) -> None:
        """Set the number of steps of the current stage."""
        self._total = total

    def end(self, record: Record) -> None:
        """End the current stage."""
        if self._open:
            self._open.pop()
        if self._open:
            return
        if record.stage not in UNCACHED:
            self._from_cache = record.status == "cached"
        expected = self._expected.get(record.stage)
        if record.status == "done" and expected is not None and record.stage not in FIXED:
            self._spent += record.seconds
            self._foreseen += expected
        self._done, self._total = 0, 0

    def seconds(self) -> float | None:
        """Return the seconds left, never negative; None if nothing supports a forecast."""
        estimate, now = self._estimate(), self._clock()
        if estimate is None:
            self._shown = None
            return None
        if self._shown is None:
            self._shown = estimate
        else:
            # 100 s shown 2 s ago are 98 s now. Of the 100 s to a new estimate of 198 s, a fifth
            # closes in these 2 s: 120 s.
            passed = max(0.0, now - self._shown_at)
            aged = max(0.0, self._shown - passed)
            gap = estimate - aged
            self._shown = aged + gap * (1.0 - math.exp(-passed / (LATER if gap > 0 else EARLIER)))
        self._shown_at = now
        return max(0.0, self._shown)

    def _estimate(self) -> float | None:
        scale = self._scale()
        if scale is None:
            return None
        rest = self._rest_of_stage(scale)
        for stage in self._coming:
            expected = self._foresee(stage, scale)
            if expected is None:
                return None
            if rest is not None:
                rest += expected
        return rest

    def _scale(self) -> float | None:
        """Return the ratio of this build's seconds to the expected ones; None if it is unknown."""
        if not self._expected or (not self._measured and self._foreseen < ENOUGH):
            return None
        trust = TRUST if self._measured else 0.0
        scale = (self._spent + trust) / (self._foreseen + trust)
        return min(SLOWEST, max(FASTEST, scale))

    def _foresee(self, stage: str, scale: float) -> float | None:
        """Return the expected seconds of a whole stage; None for unknown."""
        expected = self._expected.get(stage)
        if expected is None:
            return None
        if stage in FIXED:
            return expected
        if self._from_cache and stage not in UNCACHED:
            return min(CACHED_SECONDS, expected * scale)
        return expected * scale

    def _rest_of_stage(self, scale: float) -> float | None:
        """Return the seconds left of the running stage; 0 between stages, None for unknown."""
        if not self._open:
            return 0.0
        elapsed = self._clock() - self._begun
        foreseen = self._foresee(self._open[0], scale)
        share = 0.0
        if self._total:
            share = min(1.0, self._done / self._total)
        if foreseen is None and not share:
            return None
        if foreseen is None:
            return elapsed / share - elapsed
        whole = foreseen
        if share:
            # The further the stage is, the more its own speed counts.
            whole = share * (elapsed / share) + (1.0 - share) * max(foreseen, elapsed)
        return max(whole - elapsed, OVERDUE * elapsed * (1.0 - share))


def format_left(seconds: float | None) -> str:
    """Format the time left, no more exactly than it is known; "" for None.

    "a few seconds left", "about 40 s left", "about 3 min left", "about 2 h left".
    """
    if seconds is None:
        return ""
    if seconds < 8:
        return "a few seconds left"
    if seconds < 55:
        return f"about {math.ceil(seconds / 10) * 10} s left"
    if seconds < 95 * 60:
        return f"about {max(1, round(seconds / 60))} min left"
    return f"about {round(seconds / 3600)} h left"
