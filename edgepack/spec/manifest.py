"""Build manifests: the settings of a model's build, each also available as a flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from edgepack.errors import SpecError
from edgepack.runtime.tensor import Tensor
from edgepack.spec import toml_reader
from edgepack.spec.documents import (
    AudioTable,
    AxisTable,
    EvaluationTable,
    InputTable,
    ManifestDocument,
    SamplesTable,
    TextTable,
)
from edgepack.spec.pictures import PictureOptions, read_pictures
from edgepack.spec.tensors import Span, cast_up, find_repeated


@dataclass(frozen=True)
class Manifest:
    """Validated `manifests/*.toml`; absent settings are empty.

    Attributes:
        folder: base of its relative paths.
        path: file of the manifest.
        name: the model's name.
        arch: "package.module:factory" or "file.py:factory".
        arch_args: keyword arguments of the factory.
        weights: key of the weights in a checkpoint.
        strip_prefix: prefix to remove from the names of the weights.
        inputs: name, type and shape of every input.
        axes: sizes of dynamic axes, by name.
        output_kinds: kind of each output, by name and in order: one of `tensor.KINDS`, or None.
        output_axes: axis of the classes, by output name.
        calibration: source of the calibration samples, as `data.open_samples` takes it.
        evaluation: source of the evaluation samples.
        training: source of the training samples.
        samples: source of all samples; calibration and evaluation are empty then.
        split: share of its samples that are for evaluation; None if it has such a part.
        seed: of the choice of these samples.
        class_names: names of the classes, by their index.
        class_file: file with these names.
        class_folders: True if the subfolders of a folder of samples are its classes.
        metrics: the task metrics; the first is the primary one.
        allow_chance: accept an original that is right no more often than by guessing.
        pictures: conversion of a picture to an input, as keyword arguments of Picture; None
            without a table [pictures].
        text: the table [text], settings of `data.TextOptions`.
        preprocess: the user's own conversion of samples, "file.py:function"; "" for none.
        audio: the table [audio], settings of `data.AudioOptions`; None without one.
        chain: the passes; overrides the target's.
        optimize: objective of the auction, as `--optimize` takes it; "" for the default.
        document: the manifest as read.
        postprocess: function that decodes the outputs for the metrics; "" for none.
        quality: gate to bound; each overrides the target's.
        metric_gates: by metric, the bounds `max_drop`, `ratio`, `min` and `max`.
        reference_samples: number of samples in the bundle.
        emulate: verify the bundle on the target's CPUs, emulated.
    """

    folder: Path = Path()
    path: Path | None = None
    name: str = ""
    arch: str = ""
    arch_args: Mapping[str, object] = field(default_factory=dict)
    weights: str = ""
    strip_prefix: str = ""
    inputs: tuple[Tensor, ...] = ()
    axes: Mapping[str, Span] = field(default_factory=dict)
    output_kinds: Mapping[str, str | None] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    calibration: str = ""
    evaluation: str = ""
    training: str = ""
    samples: str = ""
    split: float | None = None
    seed: int = 0
    class_names: tuple[str, ...] = ()
    class_file: str = ""
    class_folders: bool = True
    metrics: tuple[str, ...] = ()
    allow_chance: bool = False
    pictures: PictureOptions | None = None
    text: TextTable = field(default_factory=TextTable)
    audio: AudioTable | None = None
    preprocess: str = ""
    chain: str = ""
    optimize: str = ""
    document: Mapping[str, object] = field(default_factory=dict, repr=False)
    postprocess: str = ""
    quality: Mapping[str, float] = field(default_factory=dict)
    metric_gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reference_samples: int | None = None
    emulate: bool = True

    def read_table(self, name: str) -> Mapping[str, object]:
        """Return a table, such as the options of a pass, which override the target's."""
        # The schema allows nothing but a table under the name of a pass.
        return cast("Mapping[str, object]", self.document.get(name, {}))


def load(path: Path) -> Manifest:
    """Read and check a manifest. Raises SpecError naming every fault."""
    content = toml_reader.read(path)
    toml_reader.check(content, "manifest", str(path))
    table = cast("ManifestDocument", content)
    inputs, outputs = table.get("inputs", []), table.get("outputs", [])
    # The schema has checked types and ranges; relations between keys are checked here.
    _refuse_repeated(path, "inputs", [entry["name"] for entry in inputs])
    _refuse_repeated(path, "outputs", [entry["name"] for entry in outputs])
    model, evaluation = table.get("model", {}), table.get("evaluation", {})
    samples, classes = table.get("samples"), table.get("classes", {})
    _refuse_two_sources(path, table)
    pictures = None
    if "pictures" in table:
        pictures = read_pictures(table["pictures"], str(path))
    return Manifest(
        folder=path.parent,
        path=path,
        name=table.get("name", ""),
        arch=model.get("arch", ""),
        arch_args=model.get("args", {}),
        weights=model.get("weights", ""),
        strip_prefix=model.get("strip_prefix", ""),
        inputs=tuple(map(_read_input, inputs)),
        axes=_read_axes(table.get("axes", {})),
        output_kinds={entry["name"]: entry.get("kind") for entry in outputs},
        output_axes={entry["name"]: entry["axis"] for entry in outputs if "axis" in entry},
        calibration=_read_samples(table.get("calibration")),
        evaluation=evaluation.get("samples", ""),
        training=_read_samples(table.get("training")),
        samples=samples["source"] if samples else "",
        split=samples.get("split") if samples else None,
        seed=samples.get("seed", 0) if samples else 0,
        class_names=tuple(classes.get("names", ())),
        class_file=classes.get("file", ""),
        class_folders=classes.get("folders", True),
        metrics=_read_metrics(path, evaluation),
        allow_chance=evaluation.get("allow_chance", False),
        pictures=pictures,
        text=table.get("text", {}),
        audio=table.get("audio"),
        preprocess=table["preprocess"]["code"] if "preprocess" in table else "",
        chain=table.get("chain", ""),
        optimize=table.get("optimize", ""),
        document=table,
        postprocess=table.get("postprocess", ""),
        quality=table.get("gates", {}).get("quality", {}),
        metric_gates=table.get("gates", {}).get("metrics", {}),
        reference_samples=table.get("reference", {}).get("samples"),
        emulate=table.get("emulate", True),
    )


def _refuse_repeated(path: Path, key: str, names: Sequence[str]) -> None:
    """Refuse a list of inputs or outputs that repeats a name, which a schema cannot express."""
    name = find_repeated(names)
    if name is not None:
        raise SpecError(
            "manifest-invalid",
            f"{path} is not a valid manifest",
            why=f"{key}: the name {name!r} is repeated",
            hint="use a different name for each",
        )


def _refuse_two_sources(path: Path, table: ManifestDocument) -> None:
    """Refuse two sources of the same samples or names, which a schema cannot express."""
    faults = []
    if "samples" in table:
        tables = {"calibration": table.get("calibration"), "evaluation": table.get("evaluation")}
        for role, entry in tables.items():
            if entry and "samples" in entry:
                faults.append(f"samples: [samples] and [{role}] samples exclude each other")
    if {"names", "file"} <= table.get("classes", {}).keys():
        faults.append("classes: names and file exclude each other")
    if faults:
        raise SpecError(
            "manifest-invalid",
            f"{path} is not a valid manifest",
            why="\n".join(faults),
            hint="remove one of them",
        )


def _read_input(entry: InputTable) -> Tensor:
    return Tensor(entry["name"], cast_up(entry["dtype"]), tuple(entry["shape"]))


# [axes] batch = { min = 1, opt = 8, max = 32 } becomes {"batch": Span(1, 8, 32)}; the schema
# allows both bounds or none, and { opt = 128 } states the usual size alone.
def _read_axes(table: Mapping[str, AxisTable]) -> dict[str, Span]:
    spans = {}
    for name, axis in table.items():
        spans[name] = Span.around(axis["opt"])
        if "min" in axis:
            spans[name] = Span(axis["min"], axis["opt"], axis["max"])
    return spans


def _read_metrics(path: Path, evaluation: EvaluationTable) -> tuple[str, ...]:
    """Return `metrics`, or the one `metric`; refuse both."""
    if "metric" in evaluation and "metrics" in evaluation:
        raise SpecError(
            "manifest-invalid",
            f"{path} is not a valid manifest",
            why="evaluation: metric and metrics exclude each other",
            hint="list all of them under metrics",
        )
    if "metric" in evaluation:
        return (evaluation["metric"],)
    return tuple(evaluation.get("metrics", ()))


def _read_samples(table: SamplesTable | None) -> str:
    return "" if table is None else table["samples"]
