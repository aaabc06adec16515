"""Types of manifests and profiles, as `tomllib` reads them and after their schemas allow them.

Names are those of the keys, and the files in `schema/` describe the same documents; a test holds
the two together. Tables that plug-ins add are not listed. Classes ending in `Extra` hold keys that
may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

# Options of a pass, by name: the pass itself checks them, and knows their types.
Options = Mapping[str, object]


class _DeviceExtra(TypedDict, total=False):
    isa: list[str]
    python: str
    compute_capability: str
    jetpack: str


class DeviceTable(_DeviceExtra):
    """Table [device] of a profile: the device that bundles are for."""

    arch: str


class _EngineExtra(TypedDict, total=False):
    version: str
    alternatives: list[str]
    fallback: str
    workspace_mb: int
    dla_core: int


class EngineTable(_EngineExtra):
    """Table [engine] of a profile: the engine that runs the model on the device."""

    name: str
    opset: int


class WheelsTable(TypedDict):
    """Table [wheels] of a profile."""

    platforms: list[str]
    python: str


class ChainTable(TypedDict):
    """Table [chain] of a profile."""

    default: str


class _GatesExtra(TypedDict, total=False):
    strict: Mapping[str, float]
    openvino: Mapping[str, float]
    placement: Mapping[str, float]


class GatesTable(_GatesExtra):
    """Table [gates] of a profile: bounds, by gate."""

    # Mappings, since gates are always compared in loops over their names. `bit_exact` of fidelity
    # is a boolean.
    quality: Mapping[str, float]
    fidelity: Mapping[str, float]


class EmulateTable(TypedDict, total=False):
    """Table [emulate] of a profile."""

    cpus: list[str]


# quantize = {"mode": "static", "exclude": ["/head/MatMul"]}, from a table [quantize].
class _PassTables(TypedDict, total=False):
    prune: Options
    factorize: Options
    distill: Options
    quantize: Options
    half: Options


class _TargetExtra(_PassTables, total=False):
    summary: str
    guide: str
    wheels: WheelsTable
    emulate: EmulateTable


class TargetDocument(_TargetExtra):
    """Target profile, with `extends` resolved."""

    schema: int
    name: str
    device: DeviceTable
    engine: EngineTable
    chain: ChainTable
    gates: GatesTable


class ModelTable(TypedDict, total=False):
    """Table [model] of a manifest: architecture and weights of a checkpoint."""

    arch: str
    args: Mapping[str, object]
    weights: str
    strip_prefix: str


class InputTable(TypedDict):
    """Entry of [[inputs]]: an axis is a fixed size or the name of a dynamic axis."""

    name: str
    dtype: str
    shape: list[int | str]


class _AxisExtra(TypedDict, total=False):
    min: int
    max: int


class AxisTable(_AxisExtra):
    """Sizes of one dynamic axis."""

    opt: int


class _OutputExtra(TypedDict, total=False):
    kind: str
    axis: int


class OutputTable(_OutputExtra):
    """Entry of [[outputs]]."""

    name: str


class SamplesTable(TypedDict):
    """Table [calibration] or [training] of a manifest."""

    samples: str


class EvaluationTable(TypedDict, total=False):
    """Table [evaluation] of a manifest."""

    samples: str
    metric: str
    metrics: list[str]
    allow_chance: bool


class _SourceExtra(TypedDict, total=False):
    split: float
    seed: int


class SourceTable(_SourceExtra):
    """Table [samples] of a manifest: one source for calibration and evaluation."""

    source: str


class ClassesTable(TypedDict, total=False):
    """Table [classes] of a manifest: names of the classes, in the model's order."""

    names: list[str]
    file: str
    folders: bool


class PicturesTable(TypedDict, total=False):
    """Table [pictures] of a manifest: conversion of a picture to an input."""

    size: int | list[int]
    resize: int | list[int]
    crop: int | list[int]
    letterbox: int | list[int]
    pad: int
    interpolation: str
    antialias: bool
    colour: str
    layout: str
    scale: float
    mean: float | list[float]
    std: float | list[float]
    normalize: str


class TextTable(TypedDict, total=False):
    """Table [text] of a manifest: conversion of a text to tokens."""

    tokenizer: str
    max_length: int
    padding: str
    truncation: str
    text: str
    text_pair: str
    label: str


class PreprocessTable(TypedDict):
    """Table [preprocess] of a manifest: the user's own function."""

    code: str


class AudioTable(TypedDict, total=False):
    """Table [audio] of a manifest: conversion of a recording to a waveform."""

    rate: int
    length: int
    channels: int
    scale: float
    normalize: str


class ManifestGatesTable(TypedDict, total=False):
    """Table [gates] of a manifest: bounds that replace the target's, by gate."""

    quality: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]


class ReferenceTable(TypedDict, total=False):
    """Table [reference] of a manifest."""

    samples: int


class _ManifestExtra(_PassTables, total=False):
    name: str
    model: ModelTable
    inputs: list[InputTable]
    axes: dict[str, AxisTable]
    outputs: list[OutputTable]
    calibration: SamplesTable
    evaluation: EvaluationTable
    training: SamplesTable
    samples: SourceTable
    classes: ClassesTable
    pictures: PicturesTable
    text: TextTable
    audio: AudioTable
    preprocess: PreprocessTable
    postprocess: str
    chain: str
    optimize: str
    gates: ManifestGatesTable
    reference: ReferenceTable
    emulate: bool


class ManifestDocument(_ManifestExtra):
    """Build manifest."""

    schema: int
