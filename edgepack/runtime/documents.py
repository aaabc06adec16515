"""Types of the documents that the loader writes: verdict and latency, as JSON values.

Only type checkers import this module, so no bundle contains it. Names are those of the keys. The
report's JSON Schema in `edgepack/report` describes the same documents, and a test holds both
together. Classes ending in `Extra` hold keys that may be absent.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, TypedDict, Union


class _TensorExtra(TypedDict, total=False):
    # The axis of the classes, if it is not the last.
    axis: int


class TensorDocument(_TensorExtra):
    """Input or output; an axis in `shape` is a size, or a name if it is dynamic."""

    name: str
    dtype: str
    shape: List[Union[int, str]]
    kind: str


class PartErrors(TypedDict):
    """Errors in one part of an output; `snr_db` is None for exact answers."""

    part: str
    snr_db: Optional[float]
    worst_error: float
    max_abs: float


class OutputMetrics(TypedDict):
    """One output against its reference, over all samples.

    `compared` is "values" or "equality"; `snr_db` is that of the worst part, which `part` names;
    agreements are shares of `decisions`, None without any.
    """

    compared: str
    snr_db: Optional[float]
    part: str
    parts: List[PartErrors]
    max_abs: float
    cosine: float
    bit_exact: bool
    nonfinite: int
    decisions: int
    top1_agreement: Optional[float]
    top5_agreement: Optional[float]


Outputs = Mapping[str, OutputMetrics]


class MetricResult(TypedDict):
    """Task metric of the original and of the model; the drop is in points."""

    name: str
    original: float
    model: float
    drop_points: float
    samples: int


class _GateExtra(TypedDict, total=False):
    # The part that decided; a qualification of a pass; for other tools' reports, the last two.
    part: str
    note: str
    decisive: bool
    relation: str


class Gate(_GateExtra):
    """Measured value held against its bound; None is an exact answer, or no finite value."""

    name: str
    output: str
    bound: Union[float, bool]
    measured: Union[float, bool, None]
    passed: bool


class Measurement(TypedDict):
    """Metrics of a model on a set of samples."""

    samples: int
    outputs: Dict[str, OutputMetrics]
    metric: Optional[MetricResult]


class _QuestionExtra(TypedDict, total=False):
    # Of quality on the evaluation set: the same metrics on the reference samples.
    reference: Dict[str, OutputMetrics]
    # The device that answered, if it is not the build host.
    device: str


class Question(Measurement, _QuestionExtra):
    """Answer to quality or fidelity; `on` is "evaluation" or "reference"."""

    on: str
    gates: List[Gate]
    passed: bool


class Answers(TypedDict):
    """Both questions of a running model, and the seconds that the reference samples took."""

    quality: Question
    fidelity: Optional[Question]
    passed: bool
    seconds: float


class _DeviceExtra(TypedDict, total=False):
    isa: Optional[List[str]]
    os: str
    python: str


class DeviceDocument(_DeviceExtra):
    """Machine that was measured; further keys name engines, GPUs and their versions."""

    arch: str
    cpu: str


class VerdictBundle(TypedDict):
    """The bundle that a verdict is about."""

    name: str
    target: str
    content_digest: str
    sha256: str
    bytes: int
    model_bytes: int


class Integrity(TypedDict):
    """Number of files whose hashes matched, and their bytes."""

    files: int
    bytes: int


class Seconds(TypedDict):
    """Seconds to load the model, and to run the reference samples."""

    load: float
    reference: float


class Memory(TypedDict):
    """Peak memory of the loader's process; None if the system does not report it."""

    peak_rss_bytes: Optional[int]


class Verdict(TypedDict):
    """Document of `verify --json`, format `edgepack-verdict/1`."""

    format: str
    passed: bool
    proven: bool
    bundle: VerdictBundle
    variant: Dict[str, Any]
    integrity: Integrity
    device: DeviceDocument
    quality: Question
    fidelity: Optional[Question]
    seconds: Seconds
    memory: Memory
    hidden: List[str]


class Load(TypedDict):
    """Load of the machine: averages of one minute, cores, and cores used by others."""

    before: Optional[float]
    after: Optional[float]
    cores: int
    others: Optional[float]


class Timing(TypedDict):
    """Latencies of one model, in ms; p90 is None below 64 queries."""

    p50: float
    p90: Optional[float]
    queries: int
    seconds: float
    rounds_p50: List[float]
    load_seconds: float
    peak_rss_bytes: Optional[int]


class _Latency(TypedDict):
    unit: str
    length: str
    threads: int
    model: Timing
    load: Load
    spread: float
    disturbed: List[str]
    variant: Dict[str, Any]
    device: DeviceDocument


class Latency(_Latency):
    """Document of `bench --json`; the other model is None without `--against`."""

    original: Optional[Timing]
    ratio: Optional[float]


class Comparison(_Latency):
    """Document of `bench --against --json`; `ratio` is the other model's p50 over the bundle's."""

    original: Timing
    ratio: float
