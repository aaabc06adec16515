"""Types of the documents that the loader reads and writes, as JSON values.

They are the index (`bundle.json`), the device info, and the result of each command. Only type
checkers import this module, so no bundle contains it. Names are those of the keys. The report's
JSON Schema in `edgepack/report` describes some of these documents, and a test holds both together.
Classes ending in `Extra` hold keys that may be absent.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, TypedDict, Union


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


class _MetricExtra(TypedDict, total=False):
    # Of a metric that the build host computed. Without it the metric is a share of decisions.
    higher_is_better: bool


class MetricResult(_MetricExtra):
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


class _MeasurementExtra(TypedDict, total=False):
    # Beside the primary one; the build host computes them.
    further_metrics: List[MetricResult]


class Measurement(_MeasurementExtra):
    """Metrics of a model on a set of samples; `metric` is the primary task metric."""

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
    """Questions of a running model, and the seconds that the reference samples took."""

    preprocessing: Optional[Question]
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


class MachineDocument(TypedDict):
    """Result of `machine.describe`; `isa` is None if the system does not report it."""

    arch: str
    cpu: str
    cores: int
    isa: Optional[List[str]]
    os: str
    python: str


class GpuDocument(TypedDict, total=False):
    """Result of `gpu.probe`; a name ending in `_why` is the reason why the other one is None."""

    gpu: Optional[str]
    gpu_why: str
    # "8.7" for Orin.
    compute_capability: Optional[str]
    multiprocessors: Optional[int]
    gpu_memory_bytes: Optional[int]
    # Newest CUDA that the driver runs, "12.6".
    cuda_driver: Optional[str]
    tensorrt: Optional[str]
    tensorrt_why: str
    # Of a Jetson: "36.4.3" and "NVIDIA Jetson AGX Orin Developer Kit".
    l4t: Optional[str]
    board: Optional[str]


class OnnxruntimeDocument(TypedDict, total=False):
    """Version of onnxruntime, or None and the reason."""

    onnxruntime: Optional[str]
    onnxruntime_why: str


class OpenVinoDocument(TypedDict, total=False):
    """Version of OpenVINO, or None and the reason."""

    openvino: Optional[str]
    openvino_why: str


class DeviceFacts(MachineDocument, OnnxruntimeDocument, OpenVinoDocument, GpuDocument, total=False):
    """Device info: the machine, its GPU, and the versions of the packages that run models."""

    numpy: str
    onnxruntime_providers: str


class DeviceNeeds(TypedDict, total=False):
    """Requirements on every device of a bundle; an absent key requires nothing."""

    arch: str
    isa: List[str]
    python: str
    jetpack: str


class VariantNeeds(TypedDict, total=False):
    """Further requirements of one variant; versions are specifiers, such as ">=10.3,<11"."""

    arch: str
    isa: List[str]
    compute_capability: str
    engine_version: str
    gpu: str


class SettingsEntry(TypedDict, total=False):
    """Settings of an engine that are not its defaults."""

    precision: str
    threads: int
    spinning: bool


class _VariantEntryExtra(TypedDict, total=False):
    settings: SettingsEntry
    fidelity: Dict[str, float]


class VariantEntry(_VariantEntryExtra):
    """Variant in the index."""

    name: str
    engine: str
    needs: VariantNeeds
    file: Optional[str]


class EngineOptionsEntry(TypedDict):
    """Options for building an engine on the device; a profile has the keys min, opt and max."""

    workspace_mb: int
    dla_core: Optional[int]
    profiles: Dict[str, Dict[str, List[int]]]


class RawEntry(TypedDict):
    """Raw reference samples: files, per input hashes and probes, and versions of the decoders."""

    files: List[str]
    sha256: List[List[str]]
    probes: List[str]
    versions: Dict[str, str]


class _ReferenceExtra(TypedDict, total=False):
    # In place of the files of the inputs.
    raw: RawEntry


class ReferenceEntry(_ReferenceExtra):
    """Names of the files of the reference samples."""

    samples: int
    inputs: List[str]
    original: List[str]
    built: List[str]


class SizeEntry(TypedDict):
    """Names of the files of the answers at another size of an axis."""

    axis: str
    size: int
    original: List[str]
    built: List[str]


class PartEntry(TypedDict):
    """Part of an output whose errors are measured separately."""

    # `[:, 0:4+5:85]` is axis 1 with the ranges [[0, 4], [5, 85]].
    axis: Optional[int]
    ranges: List[List[int]]
    variance: float


class RecordedQuality(TypedDict, total=False):
    """Measurements of the build on the evaluation set; without any key in a draft."""

    on: str
    samples: int
    outputs: Mapping[str, OutputMetrics]
    metric: Optional[MetricResult]
    further_metrics: List[MetricResult]
    reference: Mapping[str, OutputMetrics]
    passed: bool


class FileEntry(TypedDict):
    """Hash and size of one file of a bundle."""

    sha256: str
    bytes: int


class _IndexExtra(TypedDict, total=False):
    # Written last, since it covers the other keys.
    content_digest: str
    # Multiply-accumulates of one reference sample by node, for the share that a GPU takes.
    macs: Mapping[str, int]
    # Conversion of raw data to the inputs, with its `kind`; the entry with the class names.
    preprocessing: Mapping[str, object]
    classes: Optional[str]
    # The user's function that decodes the outputs: file, function, packages.
    postprocessing: Mapping[str, object]


class IndexDocument(_IndexExtra):
    """`bundle.json`, format `edgepack/3`: the one list of its keys, for writer and reader."""

    format: str
    name: str
    target: str
    device: DeviceNeeds
    inputs: List[TensorDocument]
    outputs: List[TensorDocument]
    model: str
    variants: List[VariantEntry]
    engine_options: EngineOptionsEntry
    reference: ReferenceEntry
    sizes: List[SizeEntry]
    gates: Dict[str, Dict[str, float]]
    metric: Optional[str]
    parts: Dict[str, List[PartEntry]]
    quality: RecordedQuality
    build: Dict[str, object]
    provenance: Dict[str, object]
    tools: Dict[str, str]
    files: Dict[str, FileEntry]


class ErrorDocument(TypedDict):
    """Fields of an EdgepackError."""

    code: str
    what: str
    why: str
    hint: str


class PassedOverDocument(ErrorDocument):
    """Variant that was skipped although it ranks higher, with the error that excludes it."""

    name: str
    engine: str


class _VariantExtra(TypedDict, total=False):
    # Of `info`, if the device does not meet the bundle's minimum requirements.
    error: ErrorDocument
    # Absent for the engine's defaults.
    settings: SettingsEntry


class VariantDocument(_VariantExtra):
    """Variant that runs here; name and engine are None if none does."""

    name: Optional[str]
    engine: Optional[str]
    sealed: bool
    fallback: bool
    passed_over: List[PassedOverDocument]


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


class _ReasonExtra(TypedDict, total=False):
    # Of a build: the command that leads to PASS or FAIL.
    remedy: str


class Reason(_ReasonExtra):
    """Reason for a verdict other than PASS: a missed gate, or what was not verified."""

    code: str
    text: str


class PlacementDocument(TypedDict):
    """Part of the model that an accelerator took; the share of products is None if unknown."""

    provider: str
    nodes: int
    owned: int
    macs_share: Optional[float]
    others: List[str]
    gates: List[Gate]
    passed: bool


class _VerdictExtra(TypedDict, total=False):
    # Of an engine that may leave a part of the model to the CPU; None if it does not report it.
    placement: Optional[PlacementDocument]


class Verdict(_VerdictExtra):
    """Document of `verify --json`, format `edgepack-verdict/1`.

    `verdict` is PASS, FAIL or UNVERIFIED; `passed` says whether every gate passed.
    """

    format: str
    verdict: str
    reasons: List[Reason]
    passed: bool
    bundle: VerdictBundle
    variant: VariantDocument
    integrity: Integrity
    device: DeviceDocument
    preprocessing: Optional[Question]
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


class _TimingExtra(TypedDict, total=False):
    # None below 130 and 662 queries.
    p95: Optional[float]
    p99: Optional[float]


class Timing(_TimingExtra):
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
    variant: VariantDocument
    device: DeviceDocument


class Latency(_Latency):
    """Document of `bench --json`; the other model is None without `--against`."""

    original: Optional[Timing]
    ratio: Optional[float]


class Comparison(_Latency):
    """Document of `bench --against --json`; `ratio` is the other model's p50 over the bundle's."""

    original: Timing
    ratio: float


class Turn(TypedDict):
    """One turn of `bench`; variant and device are None for the other model."""

    ns: List[int]
    load_seconds: float
    peak_rss_bytes: int
    variant: Optional[VariantDocument]
    device: Optional[DeviceFacts]


class RunDocument(TypedDict):
    """Document of `run --json`; an output has its element type and then its shape."""

    output: str
    outputs: Dict[str, List[Union[str, int]]]
    variant: VariantDocument


class InfoDocument(IndexDocument):
    """Document of `info --json`: the index, the hash of the file, and the variant."""

    sha256: str
    variant: VariantDocument


class SetupDocument(TypedDict):
    """Document of `setup --json`; `made` is False if the environment was there already."""

    environment: str
    python: str
    packages: Dict[str, str]
    made: bool


class _FinishExtra(TypedDict, total=False):
    # Of an engine that was built now.
    bytes: int
    seconds: Dict[str, float]
    preprocessing: Optional[Question]
    quality: Question
    fidelity: Optional[Question]


class FinishDocument(_FinishExtra):
    """Document of `finish --json`; `built` is False if a fitting engine was there already."""

    verdict: str
    reasons: List[Reason]
    built: bool
    engine: str
    key: Dict[str, object]


class TunedKey(TypedDict):
    """Bundle and device of a sealed choice; `engines` has their versions, "" for a missing one."""

    bundle: str
    cpu: str
    cores: int
    engines: Dict[str, str]


class TunedChoice(TypedDict):
    """Variant that `tune` chose, with its settings."""

    variant: str
    engine: str
    settings: SettingsEntry


class TunedCandidate(TypedDict):
    """Candidate of `tune`: its latency in ms, its speed-up over what runs untuned, its fate."""

    label: str
    p50: Optional[float]
    ratio: Optional[float]
    result: str


class TunedDocument(TypedDict):
    """Contents of a sealed choice that the loader reads."""

    key: TunedKey
    choice: TunedChoice
    candidates: List[TunedCandidate]


class TuneProbe(TypedDict):
    """Variants that this device cannot run, by name, and the choice that is sealed already."""

    key: TunedKey
    sealed: Optional[TunedDocument]
    fault: str
    faults: Dict[str, str]
    bf16: bool


class _TuneExtra(TypedDict, total=False):
    # Of a choice that was made now.
    seconds: Dict[str, float]
    load: Load
    disturbed: List[str]
    preprocessing: Optional[Question]
    quality: Question
    fidelity: Optional[Question]


class TuneDocument(TunedDocument, _TuneExtra):
    """Document of `tune --json`; `tuned` is False if a fitting choice was there already."""

    verdict: str
    reasons: List[Reason]
    tuned: bool
    seal: str


class MarkedDocument(TypedDict):
    """Document of `marked --json`: numbers of empty regions and of inferences."""

    empty: int
    inferences: int
