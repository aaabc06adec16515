"""The time that is left of a build."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from edgepack import forecast as forecasts
from edgepack.forecast import (
    GRAPH_PASS,
    TimeLeft,
    expected_seconds,
    forecast,
    format_left,
    measured_needs,
    store_seconds,
)
from edgepack.ledger import Record
from edgepack.request import Request
from edgepack.spec import target

STAGES = ("source", "samples", "original", "export", "simplify", "quantize", "bundle", "verify")
TYPICAL = {**forecasts.TYPICAL, "quantize": GRAPH_PASS}
# Seconds between two looks at the forecast.
LOOK = 0.25


class Simulation:
    """A build on a clock of its own: shows the forecast while stages of known lengths run."""

    def __init__(
        self, expected: Mapping[str, float] = TYPICAL, measured: bool = False,
        stages: Sequence[str] = STAGES,
    ) -> None:  # fmt: skip
        self.now = 0.0
        self.left = TimeLeft(stages, expected, measured, lambda: self.now)
        # Time and forecast at every look.
        self.looks: list[tuple[float, float | None]] = []

    def run(self, stage: str, seconds: float, steps: int = 0, status: str = "done") -> None:
        self.left.begin(stage, steps or None)
        taken = max(1, round(seconds / LOOK))
        done = 0
        for look in range(taken):
            self.now += seconds / taken
            advanced = steps * (look + 1) // taken
            self.left.advance(advanced - done)
            done = advanced
            self.looks.append((self.now, self.left.seconds()))
        self.left.end(Record(stage, status, seconds=seconds))

    def errors(self) -> list[float]:
        """Return the forecasts over the seconds that were left, from the second half on."""
        ratios = []
        for time, left in self.looks:
            if left is not None and self.now / 2 < time < self.now - 5:
                ratios.append(left / (self.now - time))
        return ratios


@pytest.mark.parametrize("speed", [0.2, 1.0, 6.0])
def test_a_first_build_is_forecast_in_proportion_to_its_stages_so_far(speed: float) -> None:
    build = Simulation()
    for stage in STAGES:
        build.run(stage, speed * TYPICAL[stage], steps=40)
    # Nothing is shown before the original's answers, which say how large the model is.
    assert all(left is None for time, left in build.looks if time < speed * 14)
    assert build.errors()
    assert all(0.6 < ratio < 1.8 for ratio in build.errors())


def test_the_second_build_is_forecast_from_its_start() -> None:
    earlier = {stage: 3.0 * (number + 1) for number, stage in enumerate(STAGES)}
    build = Simulation(earlier, measured=True)
    for stage in STAGES:
        build.run(stage, earlier[stage])
    whole = sum(earlier.values())
    assert build.looks[0][1] == pytest.approx(whole, rel=0.02)
    for time, left in build.looks:
        assert left == pytest.approx(whole - time, abs=3)


def test_stages_from_the_cache_take_no_time() -> None:
    build = Simulation(TYPICAL, measured=True)
    for stage in STAGES[:4]:
        status = "cached" if stage in ("original", "export") else "done"
        build.run(stage, TYPICAL[stage] if status == "done" else 0.1, status=status)
    # simplify and quantize are taken to be cached as well; bundle and verify are not.
    build.now += 60
    left = build.left.seconds()
    assert left == pytest.approx(TYPICAL["bundle"] + TYPICAL["verify"], abs=1)


def test_a_training_of_unknown_length_has_a_forecast_by_its_steps_alone() -> None:
    stages = (*STAGES[:5], "distill", *STAGES[5:])
    build = Simulation(stages=stages)
    for stage in STAGES[:5]:
        build.run(stage, TYPICAL[stage])
        assert build.left.seconds() is None
    build.run("distill", 400, steps=100)
    (_, early), (_, late) = build.looks[-1200], build.looks[-100]
    rest = sum(TYPICAL[stage] for stage in STAGES[5:])
    assert early == pytest.approx(300 + rest, rel=0.15)
    assert late == pytest.approx(25 + rest, rel=0.3)


@pytest.mark.parametrize("seed", range(12))
def test_the_forecast_is_never_negative_and_never_jumps(seed: int) -> None:
    generator = random.Random(seed)
    expected = {stage: generator.uniform(0.1, 60) for stage in STAGES}
    build = Simulation(expected, measured=generator.random() < 0.5)
    for stage in STAGES:
        seconds = expected[stage] * 10 ** generator.uniform(-1.5, 1.0)
        status = generator.choice(["done", "done", "cached"])
        build.run(stage, seconds, steps=generator.choice([0, 7, 1000]), status=status)
    shown = [(time, left) for time, left in build.looks if left is not None]
    for (before, first), (after, second) in itertools.pairwise(shown):
        assert second >= 0
        if after - before > LOOK + 0.01:
            continue
        # The clock takes its time off; a look closes 8 % of a gap at most.
        change = second - (first - (after - before))
        assert abs(change) <= 0.085 * max(first, build.now)


def test_without_stages_there_is_no_forecast() -> None:
    left = TimeLeft()
    left.begin("emulator")
    left.end(Record("emulator", seconds=100))
    assert left.seconds() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "a few seconds left"),
        (12, "about 20 s left"),
        (54, "about 60 s left"),
        (70, "about 1 min left"),
        (170, "about 3 min left"),
        (7000, "about 2 h left"),
    ],
)
def test_a_forecast_is_worded_no_more_exactly_than_it_is_known(
    seconds: float | None, text: str
) -> None:
    assert format_left(seconds) == text


def test_an_earlier_build_is_remembered_until_its_file_is_damaged(tmp_path: Path) -> None:
    request = Request(
        tmp_path / "m.onnx", target.load("cpu-fbgemm"), tmp_path / "m.edgepack", "m", cache=tmp_path
    )
    assert expected_seconds(request) == (forecasts.TYPICAL, False)
    assert measured_needs(request) is None
    records = [Record("export", seconds=4.25), Record("simplify", "cached"), Record("verify")]
    store_seconds(request, records)
    seconds, measured = expected_seconds(request)
    assert measured
    needs = measured_needs(request)
    assert needs is not None
    assert needs[0] == 4.25
    assert 10e6 < needs[1] < 100e9
    assert (seconds["export"], seconds["simplify"]) == (4.25, forecasts.TYPICAL["simplify"])
    # A stage that no plan has, such as a repair, is expected again.
    store_seconds(request, [Record("repair", seconds=1000.0)])
    left = forecast(request, ["source", "export", "verify"]).seconds()
    assert left is not None
    assert left > 1000
    (stored,) = (tmp_path / "timings").iterdir()
    stored.write_text('{"export": NaN, "verify": -1')
    assert expected_seconds(request) == (forecasts.TYPICAL, False)
