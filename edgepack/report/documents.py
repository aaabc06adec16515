"""Types of the report's document, as JSON values.

Names are those of the keys, and `report.schema.json` describes the same document; a test holds
the two together. Classes ending in `Extra` hold keys that may be absent.
"""

from __future__ import annotations

from typing import TypedDict

from edgepack.ledger import AuctionDocument, RecordDocument, SelectionDocument
from edgepack.runtime.documents import (
    DeviceDocument,
    Load,
    Memory,
    Question,
    Reason,
    SettingsEntry,
    TensorDocument,
)


class TargetSection(TypedDict, total=False):
    """Target profile; only the name is always present."""

    name: str
    summary: str
    precision: str


class SourceSection(TypedDict):
    """Model file; `path` is its name without the folder."""

    path: str
    kind: str
    digest: str
    parameters: int | None
    bytes: int
    trusted_pickle: bool
    weights: SelectionDocument | None


class _BundleExtra(TypedDict, total=False):
    # The hash of the whole file and the fingerprint of its signer: absent from the report inside.
    sha256: str
    signed: str


class BundleSection(_BundleExtra):
    """Bundle; `bytes` is None in the report inside it."""

    path: str
    bytes: int | None
    content_digest: str
    model_bytes: int


class _SampleSetExtra(TypedDict, total=False):
    digest: str | None
    labels: bool
    labels_unused: str


class SampleSet(_SampleSetExtra):
    """Samples of one role."""

    origin: str
    count: int


class SampleSets(TypedDict, total=False):
    """Samples by role; calibration and evaluation are always present, perhaps as None."""

    calibration: SampleSet | None
    evaluation: SampleSet | None
    training: SampleSet | None


class TimingSection(TypedDict, total=False):
    """Latencies of one model, in ms; only p50 is always present."""

    p50: float
    p90: float | None
    queries: int
    seconds: float


class Round(TypedDict):
    """Medians of one interleaved round, in ms."""

    original: float
    model: float


class _LatencyExtra(TypedDict, total=False):
    # Both models run in turns: a load that comes and goes slows both, and the ratio holds.
    rounds: list[Round]
    load: Load
    spread: float
    disturbed: list[str]
    threads: int
    length: str


class LatencySection(_LatencyExtra):
    """Latency beside the fp32 graph's; `ratio` is the original's p50 over the model's."""

    unit: str
    model: TimingSection
    original: TimingSection
    ratio: float


class _SizesExtra(TypedDict, total=False):
    basis: str
    file_bytes: int
    export_bytes: int


class Sizes(_SizesExtra):
    """Bytes of the model beside the original's; `basis` says which original that is."""

    original_bytes: int
    model_bytes: int
    ratio: float


class BuildSection(TypedDict):
    """Cost of the build."""

    seconds: float
    peak_rss_bytes: int


class Isolation(TypedDict):
    """Resources that the measured process could not reach."""

    network: str
    hidden: list[str]


class Caution(TypedDict):
    """Cost of a bundle that passed."""

    code: str
    ratio: float
    text: str


class _VariantExtra(TypedDict, total=False):
    quality: Question
    fidelity: Question


class VariantSection(_VariantExtra):
    """Variant besides the one that gave the bundle's answers; the questions are absent if it did
    not run."""

    name: str
    engine: str
    settings: SettingsEntry
    passed: bool
    misses: list[str]
    notes: list[str]
    emulated: dict[str, Question]


class AuctionSection(AuctionDocument):
    """Auction of a build, with its share of the build's time."""

    share: float


class _ReportExtra(TypedDict, total=False):
    variants: list[VariantSection]
    auction: AuctionSection
    preprocessing: Question
    emulated: dict[str, Question]
    build: BuildSection
    stands_in: bool
    cautions: list[Caution]


class Report(_ReportExtra):
    """Report of a build, format `edgepack-report/1`."""

    format: str
    verdict: str
    reasons: list[Reason]
    created: str
    name: str
    target: TargetSection
    source: SourceSection
    bundle: BundleSection
    inputs: list[TensorDocument]
    outputs: list[TensorDocument]
    samples: SampleSets
    ledger: list[RecordDocument]
    quality: Question
    fidelity: Question
    latency: LatencySection | None
    memory: Memory
    sizes: Sizes
    device: DeviceDocument
    isolation: Isolation
    tools: dict[str, str]
    warnings: list[str]
    slower: bool
