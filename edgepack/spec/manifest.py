"""Build manifests: what a model needs to be built. Everything in one can be given as flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.errors import SpecError
from edgepack.runtime.tensor import Tensor
from edgepack.spec import document
from edgepack.spec.tensors import Span, cast_up, repeated


@dataclass(frozen=True)
class Manifest:
    """A `manifests/*.toml`, checked; empty fields are what it does not state.

    Attributes:
        folder: what its relative paths start from.
        path: its file.
        name: the model's name.
        arch: "package.module:factory" or "file.py:factory".
        arch_args: keyword arguments of the factory.
        weights: the key under which a checkpoint holds the weights.
        strip_prefix: what to remove from the front of their names.
        inputs: name, type and shape of every input.
        axes: the sizes of dynamic axes, by name.
        output_kinds: by name, in order: one of `tensor.KINDS`, or None where it is not stated.
        output_axes: by name, the axis of the classes, where it is stated.
        calibration: where the calibration samples are.
        evaluation: where the evaluation samples are.
        training: where the training samples are.
        metric: the task metric.
        allow_chance: whether the original may be right no more often than by guessing.
        pictures: how a picture becomes an input, as keyword arguments of Preprocessing; None
            where the manifest says nothing of pictures.
        chain: the passes, in place of the target's.
        passes: options by pass, laid over the target's.
        quality: gates laid over the target's.
        reference_samples: how many samples the bundle carries.
        emulate: whether the bundle is to be proved on the target's CPUs, emulated.
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
    passes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    reference_samples: int | None = None
    emulate: bool = True


def load(path: Path) -> Manifest:
    """Read and check a manifest. Raises SpecError naming every fault."""
    found = document.read(path)
    document.check(found, "manifest", str(path))
    _check_named_once(found, path)
    model, evaluation = found.get("model", {}), found.get("evaluation", {})
    pictures = found.get("pictures")
    return Manifest(
        folder=path.parent,
        path=path,
        name=found.get("name", ""),
        arch=model.get("arch", ""),
        arch_args=model.get("args", {}),
        weights=model.get("weights", ""),
        strip_prefix=model.get("strip_prefix", ""),
        inputs=tuple(
            Tensor(i["name"], cast_up(i["dtype"]), tuple(i["shape"]))
            for i in found.get("inputs", ())
        ),
        axes={
            name: Span(axis["min"], axis["opt"], axis["max"])
            for name, axis in found.get("axes", {}).items()
        },
        output_kinds={o["name"]: o.get("kind") for o in found.get("outputs", ())},
        output_axes={o["name"]: o["axis"] for o in found.get("outputs", ()) if "axis" in o},
        calibration=found.get("calibration", {}).get("samples", ""),
        evaluation=evaluation.get("samples", ""),
        training=found.get("training", {}).get("samples", ""),
        metric=evaluation.get("metric", ""),
        allow_chance=evaluation.get("allow_chance", False),
        pictures=None if pictures is None else _tuples(pictures),
        chain=found.get("chain", ""),
        passes=document.passes(found),
        quality=found.get("gates", {}).get("quality", {}),
        reference_samples=found.get("reference", {}).get("samples"),
        emulate=found.get("emulate", True),
    )


def _check_named_once(found: Mapping[str, Any], path: Path) -> None:
    """Refuse a list of inputs or outputs in which a name stands twice."""
    for key in ("inputs", "outputs"):
        twice = repeated([entry["name"] for entry in found.get(key, ())])
        if twice is not None:
            raise SpecError(
                "manifest-invalid",
                f"{path} is not a valid manifest",
                why=f"{key}: there are two of the name {twice!r}",
                hint="give each a name of its own",
            )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
