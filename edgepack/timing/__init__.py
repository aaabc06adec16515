"""Latency of models on this machine, each in a process of its own, in turns.

Threads of several sessions in one process disturb each other, and so each model has a `Worker`,
which opens it by the loader's own code. The models take turns, A B A B, so that a drift of the
machine's speed affects all of them alike.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from edgepack.errors import HostError
from edgepack.runtime.bundle.engines import DEFAULTS, ONNXRUNTIME, Settings
from edgepack.runtime.tensor import Tensor
from edgepack.timing.worker import FEED, MODEL, TASK

if TYPE_CHECKING:
    from typing_extensions import Self

# Least number of timed calls of a turn, however long they take.
FEWEST = 3


@dataclass(frozen=True)
class Subject:
    """Model to time, and the way to run it.

    Attributes:
        model: serialised ONNX.
        inputs: of the model.
        outputs: of the model.
        engine: ONNXRUNTIME or OPENVINO.
        settings: of the engine; the defaults are those of `bench`, with every physical core.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    engine: str = ONNXRUNTIME
    settings: Settings = DEFAULTS


class Worker:
    """Process that runs one model.

    Attributes:
        rounds: median latency of each turn, in ms.
        queries: number of timed calls.
        peak_rss: peak memory of the process so far, in bytes.
    """

    def __init__(self, subject: Subject, feed: Mapping[str, np.ndarray]) -> None:
        self.rounds: list[float] = []
        self.queries = 0
        self.peak_rss = 0
        self._folder = Path(tempfile.mkdtemp(prefix="edgepack-timing-"))
        (self._folder / MODEL).write_bytes(subject.model)
        arrays = {str(i): feed[tensor.name] for i, tensor in enumerate(subject.inputs)}
        np.savez(self._folder / FEED, **arrays)  # type: ignore[arg-type]
        task = {
            "engine": subject.engine,
            "settings": subject.settings._asdict(),
            "inputs": [tensor.to_json() for tensor in subject.inputs],
            "outputs": [tensor.to_json() for tensor in subject.outputs],
        }
        (self._folder / TASK).write_text(json.dumps(task), encoding="utf-8")
        # It imports from the same places as this process.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgepack.timing.worker", str(self._folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._requests = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the model has run once; return False if that takes longer than some seconds.

        Raises HostError if the model does not run.
        """
        ready, _, _ = select.select([self._answers], [], [], seconds)
        if ready:
            self._read()
        return bool(ready)

    def turn(self, seconds: float, fewest: int = FEWEST) -> None:
        """Time the model for one turn. Raises HostError if the process has ended."""
        # A process that has ended takes no request, and its missing answer says so.
        with suppress(OSError):
            self._requests.write(f"{seconds} {fewest}\n")
            self._requests.flush()
        times = self._read()
        self.rounds.append(statistics.median(times) / 1e6)
        self.queries += len(times)

    def _read(self) -> list[int]:
        line = self._answers.readline()
        if not line:
            status = self._process.wait()
            raise HostError(
                "timing-failed",
                "the process that measures the latency failed",
                why=f"exit status {status}",
                hint="--latency none builds without measuring",
            )
        document = json.loads(line)
        if "error" in document:
            fault = document["error"]
            raise HostError(
                fault["code"],
                fault["what"],
                why=fault["why"],
                hint="--latency none builds without measuring",
            )
        self.peak_rss = document["peak_rss_bytes"]
        times: list[int] = document["ns"]
        return times

    @property
    def median(self) -> float:
        """Median of the turns' medians, in ms."""
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        """Median of the fastest turn, in ms: other programs slow turns down, and speed none up."""
        return min(self.rounds)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)


def time_in_turns(
    subjects: Sequence[Subject], feed: Mapping[str, np.ndarray], rounds: int, seconds: float
) -> list[Worker]:
    """Return the workers of some models after a number of turns each; the processes have ended.

    Args:
        subjects: the models.
        feed: their input.
        rounds: turns of each model.
        seconds: length of one turn.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(subject, feed)) for subject in subjects]
        for worker in workers:
            worker.wait()
        for _ in range(rounds):
            for worker in workers:
                worker.turn(seconds)
    return workers
