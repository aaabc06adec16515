"""The ledger: what every stage of a build did, or why it did nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from edgepack.metrics.closeness import closeness_db

Model = TypeVar("Model")


@dataclass(frozen=True)
class PassResult(Generic[Model]):
    """What a step on a model returns: model in, `PassResult` out.

    Attributes:
        model: the model after the step.
        changed: whether the step changed it.
        notes: what it did; where it did nothing, the reason. Whole sentences.
        details: figures for the ledger, by name (JSON values).
    """

    model: Model
    changed: bool
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Progress(Protocol):
    """Where a stage tells how far it is. The terminal's is `edgepack.progress`."""

    def begin(self, stage: str, total: int | None = None) -> None:
        """A stage begins; `total` is the number of steps where it is known."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps of the current stage are done."""

    def expect(self, total: int) -> None:
        """The current stage turned out to have this many steps."""

    def tell(self, text: str) -> None:
        """What the current stage is at, in a few words: "epoch 3/10, loss 0.41, top-1 90.2 %"."""

    def end(self, record: Record) -> None:
        """The current stage ended."""

    def warn(self, message: str) -> None:
        """Something the user should know now."""


@dataclass(frozen=True)
class Record:
    """What one stage did.

    Attributes:
        stage: its name ("source", "export", "quantize", ...).
        status: "done", "cached" (taken from an earlier build), "skipped" (with the reason in
            `notes`) or "failed".
        notes: what it did, or why it did nothing; whole sentences.
        seconds: wall-clock time.
        bytes: size of the model after the stage.
        parameters: number of trained values after the stage.
        parity: per output, the metrics against the original model on the reference samples.
        measured: what the model costs and loses after the stage, and what the stage changed of
            that; None for a stage that is no pass (see `stages.measure`).
        details: further figures of the stage, by name.
    """

    stage: str
    status: str = "done"
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: int | None = None
    parameters: int | None = None
    parity: Mapping[str, Mapping[str, Any]] | None = None
    measured: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "stage": self.stage,
            "status": self.status,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "parameters": self.parameters,
            "parity": None if self.parity is None else {k: dict(v) for k, v in self.parity.items()},
            "measured": None if self.measured is None else dict(self.measured),
            "details": dict(self.details),
        }


class Stage:
    """The open record of the stage that is running."""

    def __init__(self, record: Record, progress: Progress) -> None:
        self.record = record
        self.progress = progress

    def note(self, *sentences: str) -> None:
        """Add what the stage did, or why it did nothing."""
        self.record = replace(self.record, notes=self.record.notes + sentences)

    def set(self, **fields: Any) -> None:
        """Set fields of the record: status, bytes, parameters, parity, measured."""
        self.record = replace(self.record, **fields)

    def detail(self, **figures: Any) -> None:
        """Add further figures."""
        self.record = replace(self.record, details={**self.record.details, **figures})


class Ledger:
    """The records of one build, in order."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.records: list[Record] = []
        self.warnings: list[str] = []

    def warn(self, *messages: str) -> None:
        """Record what the user should know, and say it now."""
        for message in messages:
            if message not in self.warnings:
                self.warnings.append(message)
                self.progress.warn(message)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Run one stage; its record is kept also when it fails."""
        stage = Stage(Record(name), self.progress)
        self.progress.begin(name, total)
        started = time.perf_counter()
        try:
            yield stage
        except BaseException:
            stage.set(status="failed")
            raise
        finally:
            stage.set(seconds=time.perf_counter() - started)
            self.records.append(stage.record)
            self.progress.end(stage.record)

    def first_loss(self, drop_db: float = 3.0) -> Record | None:
        """The first stage that lost more than `drop_db` of SNR on some output, if any did."""
        before: dict[str, float] = {}
        for record in self.records:
            for output, metrics in (record.parity or {}).items():
                # Above 90 dB two fp32 graphs differ by rounding alone; None is no error.
                snr = min(closeness_db(metrics), 90.0)
                if before.get(output, 90.0) - snr > drop_db:
                    return record
                before[output] = snr
        return None

    def lost_in(self) -> Record | None:
        """The pass since which gates of quality are missed; None where they hold by now."""
        lost = None
        for record in self.records:
            if record.measured is not None:
                lost = (lost or record) if record.measured["missed"] else None
        return lost
