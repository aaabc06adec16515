"""Ledger of a build: one record per stage, with its effect or the reason for skipping it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar

from edgepack.runtime.documents import Gate, Measurement, Outputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

Model = TypeVar("Model")

# Stages of a build in order, as its ledger names them. The passes run between them:
#   source samples wheels original export simplify | prune quantize | repair engine bundle ...
STAGES_BEFORE = ("source", "samples", "wheels", "original", "export", "simplify")
STAGES_AFTER = (
    "repair", "auction", "engine", "bundle", "verify", "emulate", "variants", "latency",
)  # fmt: skip


@dataclass(frozen=True)
class PassResult(Generic[Model]):
    """Result of a pass on a model.

    Attributes:
        model: the model after the pass.
        changed: True if the pass changed it.
        notes: the effects of the pass, or the reason for having none. Whole sentences.
        details: figures for the ledger, by name (JSON values).
    """

    model: Model
    changed: bool
    notes: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)


class Progress(Protocol):
    """Receiver of a stage's progress; `edgepack.progress` has the implementations."""

    def begin(self, stage: str, total: int | None = None) -> None:
        """Begin a stage; `total` is the number of steps, None if it is unknown."""

    def advance(self, steps: int = 1) -> None:
        """Count further steps of the current stage as done."""

    def expect(self, total: int) -> None:
        """Set the number of steps of the current stage, once it is known."""

    def tell(self, text: str) -> None:
        """Show the state of the current stage: "epoch 3/10, loss 0.41, top-1 90.2 %"."""

    def end(self, record: Record) -> None:
        """End the current stage."""

    def warn(self, message: str) -> None:
        """Show a warning at once."""


class SelectionDocument(TypedDict):
    """Key and prefix of the weights in a checkpoint, and the entries that were not used."""

    key: str
    prefix: str
    left: list[str]


class _QuickLatencyExtra(TypedDict, total=False):
    # Largest ratio of the measurement's turns over the smallest, less one.
    spread: float


class QuickLatency(_QuickLatencyExtra):
    """Quick measurement of a pass's result: medians in ms, and the original's over the model's."""

    p50: float
    original: float
    ratio: float
    queries: int


class CandidateDocument(TypedDict):
    """Candidate of an auction, and the reason why it lost; "" for the winner.

    Costs are None if it did not run, quality if it could not win and was not judged.
    """

    name: str
    form: str
    engine: str
    settings: Mapping[str, object]
    bytes: int
    cost: float | None
    # fp32's cost over this one's, and the peak memory of its process.
    ratio: float | None
    peak_rss_bytes: int | None
    # Exact answers have no SNR, either.
    judged: bool
    snr_db: float | None
    metric_points: float | None
    reason: str


class AuctionDocument(TypedDict):
    """Auction of a build: its candidates, the one that won, and what it cost."""

    objective: str
    unit: str
    noise: float
    seconds: float
    winner: str
    candidates: list[CandidateDocument]


class Change(TypedDict):
    """Differences from the pass before; the latency's as a share. None: not comparable."""

    # After quantize: bytes -3100000, snr_db -22.5, metric_points -0.3, latency -0.6.
    bytes: int
    parameters: int
    macs: int | None
    snr_db: float | None
    metric_points: float | None
    latency: float | None


class Measured(TypedDict):
    """Cost and loss of the model after a pass, on the whole evaluation set."""

    macs: int | None
    quality: Measurement
    missed: list[Gate]
    latency: QuickLatency | None
    change: Change | None


class _RecordExtra(TypedDict, total=False):
    # Older reports lack it.
    measured: Measured | None


class RecordDocument(_RecordExtra):
    """`Record` as JSON values."""

    stage: str
    status: str
    notes: list[str]
    seconds: float
    bytes: int | None
    parameters: int | None
    parity: Outputs | None
    details: Mapping[str, object]


def read_measured(record: RecordDocument) -> Measured:
    """Return the measurements after a pass. Raises ValueError for a record of another stage."""
    measured = record.get("measured")
    if measured is None:
        raise ValueError(f"the stage {record['stage']} was not measured")
    return measured


@dataclass(frozen=True)
class Record:
    """Record of one stage.

    Attributes:
        stage: name of the stage ("source", "export", "quantize", ...).
        status: "done", "cached" (from an earlier build), "skipped" (with the reason in `notes`)
            or "failed".
        notes: the effects of the stage, or the reason for having none; whole sentences.
        seconds: wall-clock time.
        bytes: size of the model after the stage.
        parameters: number of trained values after the stage.
        parity: per output, the metrics against the original model on the reference samples.
        measured: cost and loss of the model after the stage, and their changes by the stage;
            None if the stage is not a pass (see `stages.measure`).
        details: further figures of the stage, by name.
        auction: candidates of an auction, which the report has in a section of its own.
    """

    stage: str
    status: str = "done"
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: int | None = None
    parameters: int | None = None
    parity: Outputs | None = None
    measured: Measured | None = None
    # Such as {"layers_quantized": 12}: each stage has its own, so that no type lists them.
    details: Mapping[str, object] = field(default_factory=dict)
    auction: AuctionDocument | None = None

    def to_json(self) -> RecordDocument:
        """Return the record as JSON values for the report."""
        return {
            "stage": self.stage,
            "status": self.status,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "parameters": self.parameters,
            # None and an empty mapping differ: not measured, or nothing to measure.
            "parity": self.parity,
            "measured": self.measured,
            "details": dict(self.details),
        }


class _Fields(TypedDict, total=False):
    auction: AuctionDocument
    status: str
    seconds: float
    bytes: int | None
    parameters: int | None
    parity: Outputs | None
    measured: Measured | None


class Stage:
    """Open record of a running stage."""

    def __init__(self, record: Record, progress: Progress) -> None:
        self.record = record
        self.progress = progress

    def note(self, *sentences: str) -> None:
        """Add notes on the stage, in whole sentences."""
        # Records are immutable, since the display and the report may hold one already.
        self.record = replace(self.record, notes=self.record.notes + sentences)

    def set(self, **fields: Unpack[_Fields]) -> None:
        """Set fields of the record: status, bytes, parameters, parity, measured."""
        self.record = replace(self.record, **fields)

    def detail(self, **figures: object) -> None:
        """Add figures to the details."""
        self.record = replace(self.record, details={**self.record.details, **figures})


class Ledger:
    """Records of one build, in order.

    Attributes:
        progress: shows the stages while they run.
        started: start of the build, by `time.perf_counter`.
        records: of the stages that ended.
        warnings: each of them once.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.started = time.perf_counter()
        self.records: list[Record] = []
        self.warnings: list[str] = []

    def warn(self, *messages: str) -> None:
        """Record warnings and show each of them once."""
        for message in messages:
            # Several passes may find the same fault; the user reads it once.
            if message not in self.warnings:
                self.warnings.append(message)
                self.progress.warn(message)

    def repeat(self, records: Iterable[Record], warnings: Iterable[str]) -> None:
        """Record stages of another build of the same command, with the warnings already shown."""
        for record in records:
            self.progress.begin(record.stage)
            self.records.append(replace(record, status="cached", seconds=0.0))
            self.progress.end(self.records[-1])
        self.warnings += [message for message in warnings if message not in self.warnings]

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Run one stage, and record it even if it fails."""
        stage = Stage(Record(name), self.progress)
        self.progress.begin(name, total)
        started = time.perf_counter()
        try:
            yield stage
        except BaseException:
            stage.set(status="failed")
            raise
        finally:
            # Failed stages are recorded as well, so that the report shows where the time went.
            stage.set(seconds=time.perf_counter() - started)
            self.records.append(stage.record)
            self.progress.end(stage.record)

    def find_auction(self) -> AuctionDocument | None:
        """Return the auction of the build; None if there was none."""
        for record in self.records:
            if record.auction is not None:
                return record.auction
        return None

    def find_losing_pass(self) -> Record | None:
        """Return the pass since which quality gates are missed, None if they hold at the end."""
        # Passes with missed gates: prune no, factorize yes, quantize yes. It is factorize.
        lost = None
        for record in self.records:
            if record.measured is not None:
                # A later pass, such as repair, may bring the gates back.
                if not record.measured["missed"]:
                    lost = None
                elif lost is None:
                    lost = record
        return lost
