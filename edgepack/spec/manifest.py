"""Build manifests: the settings of a model's build, each also available as a flag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.errors import SpecError
from edgepack.runtime.tensor import Tensor
from edgepack.spec import document
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
        metric: the task metric.
        allow_chance: accept an original that is right no more often than by guessing.
        pictures: conversion of a picture to an input, as keyword arguments of Preprocessing; None
            without a table [pictures].
        chain: the passes; overrides the target's.
        document: the manifest as read.
        quality: gate to bound; each overrides the target's.
        reference_samples: number of samples in the bundle.
        emulate: verify the bundle on the target's CPUs, emulated.
    """

    folder: Path = Path()
    path: Path | None = None
    name: str = ""
    arch: str = ""
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    strip_prefix: str = ""
    inputs: tuple[Tensor, ...] = ()
    axes: Mapping[str, Span] = field(default_factory=dict)
    output_kinds: Mapping[str, str | None] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    calibration: str = ""
    evaluation: str = ""
    training: str = ""
    metric: str = ""
    allow_chance: bool = False
    pictures: Mapping[str, Any] | None = None
    chain: str = ""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)
    quality: Mapping[str, float] = field(default_factory=dict)
    reference_samples: int | None = None
    emulate: bool = True

    def read_table(self, name: str) -> Mapping[str, object]:
        """Return a table, such as the options of a pass, which override the target's."""
        table: Mapping[str, object] = self.document.get(name, {})
        return table


def load(path: Path) -> Manifest:
    """Read and check a manifest. Raises SpecError naming every fault."""
    table = document.read(path)
    document.check(table, "manifest", str(path))
    _refuse_repeated(table, path)
    model, evaluation = table.get("model", {}), table.get("evaluation", {})
    pictures = table.get("pictures")
    return Manifest(
        folder=path.parent,
        path=path,
        name=table.get("name", ""),
        arch=model.get("arch", ""),
        arch_args=model.get("args", {}),
        weights=model.get("weights", ""),
        strip_prefix=model.get("strip_prefix", ""),
        inputs=tuple(
            Tensor(i["name"], cast_up(i["dtype"]), tuple(i["shape"]))
            for i in table.get("inputs", ())
        ),
        axes={
            name: Span(axis["min"], axis["opt"], axis["max"])
            for name, axis in table.get("axes", {}).items()
        },
        output_kinds={o["name"]: o.get("kind") for o in table.get("outputs", ())},
        output_axes={o["name"]: o["axis"] for o in table.get("outputs", ()) if "axis" in o},
        calibration=table.get("calibration", {}).get("samples", ""),
        evaluation=evaluation.get("samples", ""),
        training=table.get("training", {}).get("samples", ""),
        metric=evaluation.get("metric", ""),
        allow_chance=evaluation.get("allow_chance", False),
        pictures=None if pictures is None else _convert_lists(pictures),
        chain=table.get("chain", ""),
        document=table,
        quality=table.get("gates", {}).get("quality", {}),
        reference_samples=table.get("reference", {}).get("samples"),
        emulate=table.get("emulate", True),
    )


def _refuse_repeated(table: Mapping[str, Any], path: Path) -> None:
    """Refuse a list of inputs or outputs that repeats a name, which a schema cannot express."""
    for key in ("inputs", "outputs"):
        name = find_repeated([entry["name"] for entry in table.get(key, ())])
        if name is not None:
            raise SpecError(
                "manifest-invalid",
                f"{path} is not a valid manifest",
                why=f"{key}: the name {name!r} is repeated",
                hint="use a different name for each",
            )


def _convert_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    # Preprocessing is frozen and hashable, so its fields are tuples: mean = [0.5] becomes (0.5,).
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
