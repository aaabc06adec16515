"""Request of a build: flags override the manifest, which overrides the target's defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack import passes
from edgepack.bundle.wheels import check as check_wheels
from edgepack.cache import default_folder
from edgepack.data.preprocessing import Preprocessing
from edgepack.errors import SpecError
from edgepack.runtime.tensor import Tensor
from edgepack.spec.manifest import Manifest
from edgepack.spec.target import Target
from edgepack.spec.tensors import Span

# Gates with a lower bound, so that --strict takes the larger of two.
MINIMA = ("snr_db", "cosine", "agreement", "metric_ratio")


@dataclass(frozen=True)
class Request:
    """Complete description of a build, without anything that needs the loaded model.

    Attributes:
        model: the file or folder of the trained model.
        target: the device profile.
        output: path of the bundle.
        name: the model's name in the bundle.
        base: folder to which paths of samples and of the factory are relative.
        arch: "module:factory" for a state dict.
        arch_args: keyword arguments of the factory.
        weights: the key of the weights in a checkpoint; "" for the usual keys.
        strip_prefix: prefix to remove from the names of a checkpoint's weights.
        trust_pickle: True if code in the model's file may run.
        inputs: declared inputs; empty if they must be inferred.
        axes: declared sizes of dynamic axes to build an engine for, by name.
        output_kinds: by output name: one of `tensor.KINDS`, or None.
        output_axes: by output name, the declared axis of the classes.
        calibration: source of the calibration samples; "" for none.
        evaluation: source of the evaluation samples; "" for none.
        training: source of the training samples; "" for none.
        random: True if random numbers replace the calibration samples.
        files: other files that the build reads: manifest, profile.
        preprocessing: conversion of pictures to an input; None without one in the manifest.
        metric: the task metric; "" takes top-1 if there are labels for an output's decisions.
        allow_chance: True if the original may be no better than guessing.
        chain: the passes in order, with options of the profile and the manifest merged in.
        quality: the gates, including those that apply only with labels.
        explicit_gates: names of the gates that the user set; these apply in any case.
        reference_samples: number of samples in the bundle; None for as many as fit 4 MiB.
        latency: MLPerf run length of the measurement ("smoke", "quick", "normal"), or "none".
        wheels: True to include the device's wheels in the bundle.
        emulate: True to verify on the target's CPUs if they can be emulated.
        cache: folder of the stage cache.
        refresh: recompute all stages.
        sign: the key to sign the bundle with; None for no signature.
    """

    model: Path
    target: Target
    output: Path
    name: str
    base: Path = Path()
    arch: str = ""
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    strip_prefix: str = ""
    trust_pickle: bool = False
    inputs: tuple[Tensor, ...] = ()
    axes: Mapping[str, Span] = field(default_factory=dict)
    output_kinds: Mapping[str, str | None] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    calibration: str = ""
    evaluation: str = ""
    training: str = ""
    random: bool = False
    files: tuple[Path, ...] = ()
    preprocessing: Preprocessing | None = None
    metric: str = ""
    allow_chance: bool = False
    chain: tuple[passes.Step, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    explicit_gates: frozenset[str] = frozenset()
    reference_samples: int | None = None
    latency: str = "smoke"
    wheels: bool = False
    emulate: bool = True
    cache: Path = field(default_factory=default_folder)
    refresh: bool = False
    sign: Path | None = None

    def list_inputs(self) -> tuple[Path, ...]:
        """Return the files and folders that the build reads."""
        texts = (self.arch, self.calibration, self.evaluation, self.training)
        # "data.py:samples" may be a file of that name, or the function in data.py: list both.
        parts = {*texts, *(text.rpartition(":")[0] for text in texts)} - {""}
        key = [self.sign] if self.sign else []
        return (self.model, *self.files, *key, *sorted({Path(part) for part in parts}))


def resolve(
    model: Path,
    target: Target,
    manifest: Manifest,
    *,
    output: Path | None = None,
    arch: str = "",
    arch_args: Mapping[str, Any] | None = None,
    weights: str = "",
    strip_prefix: str = "",
    trust_pickle: bool = False,
    inputs: tuple[Tensor, ...] = (),
    axes: Mapping[str, Span] | None = None,
    calibration: str = "",
    evaluation: str = "",
    training: str = "",
    random_calibration: bool = False,
    metric: str = "",
    allow_chance: bool = False,
    passes: str | None = None,
    max_drop: float | None = None,
    strict: bool = False,
    latency: str = "smoke",
    wheels: bool = False,
    no_emulate: bool = False,
    refresh: bool = False,
    sign: Path | None = None,
) -> Request:
    """Merge flags, manifest and profile, in this order of precedence.

    Raises SpecError or ChainError if they contradict each other.
    """
    if random_calibration and calibration:
        raise SpecError(
            "calibration-twice",
            "calibration samples and random calibration were both requested",
            why="--calibration and --random-calibration exclude each other",
            hint="remove one of them",
        )
    if max_drop is not None and strict:
        raise SpecError(
            "max-drop",
            "two gates on the loss of the metric were requested",
            why="--strict and --max-drop exclude each other: each sets the gate on the metric",
            hint="remove one of them",
        )
    if max_drop is not None and not math.isfinite(max_drop):
        raise SpecError(
            "max-drop",
            "the bound on the loss of the metric is not valid",
            why=f"--max-drop {max_drop} is not a number of points",
            hint="pass a finite number, such as --max-drop 1",
        )
    if wheels:
        check_wheels(target)
    # "my model.onnx" becomes "my-model": the name is used in file names.
    name = manifest.name or re.sub(r"[^A-Za-z0-9_.-]+", "-", model.resolve().stem).strip("-.")
    # An empty --chain is a chain without passes, unlike an absent one.
    chain_text = manifest.chain or target.chain
    if passes is not None:
        chain_text = passes
    quality, explicit_gates = _gates(target, manifest, strict, max_drop)
    # Paths on the command line are relative to the current folder, those in a manifest to its own.
    origin = _Origin(manifest.folder)
    # Random calibration ignores the samples of the manifest, but not those on the command line.
    if not random_calibration:
        calibration = calibration or origin.of(manifest.calibration)
        evaluation = evaluation or origin.of(manifest.evaluation)
    preprocessing = None
    if manifest.pictures is not None:
        preprocessing = Preprocessing(**manifest.pictures)
    return Request(
        model=model,
        target=target,
        output=output or Path(f"{name or 'model'}-{target.name}.edgepack"),
        name=name or "model",
        base=manifest.folder,
        arch=arch or origin.of(manifest.arch),
        arch_args={**manifest.arch_args, **(arch_args or {})},
        weights=weights or manifest.weights,
        strip_prefix=strip_prefix or manifest.strip_prefix,
        trust_pickle=trust_pickle,
        inputs=inputs or manifest.inputs,
        axes={**manifest.axes, **(axes or {})},
        output_kinds=manifest.output_kinds,
        output_axes=manifest.output_axes,
        calibration=calibration,
        evaluation=evaluation,
        training=training or origin.of(manifest.training),
        random=random_calibration,
        files=tuple(path for path in (target.path, manifest.path) if path),
        preprocessing=preprocessing,
        metric=metric or manifest.metric,
        allow_chance=allow_chance or manifest.allow_chance,
        chain=_steps(chain_text, target, manifest),
        quality=quality,
        explicit_gates=explicit_gates,
        reference_samples=manifest.reference_samples,
        latency=latency,
        wheels=wheels,
        emulate=manifest.emulate and not no_emulate,
        refresh=refresh,
        sign=sign,
    )


@dataclass(frozen=True)
class _Origin:
    """Folder to which the paths of a manifest are relative."""

    folder: Path

    def of(self, text: str) -> str:
        """Return a path, or "file.py:function", relative to the current folder.

        Any other text, such as the name of a dataset, is returned unchanged.
        """
        if not text:
            return ""
        name, colon, function = text.rpartition(":")
        if not colon:
            return str(self.folder / text)
        # "torchvision.models:resnet18" names a module: there is no such file.
        path = self.folder / name
        return f"{path}:{function}" if path.exists() else text


def _steps(chain_text: str, target: Target, manifest: Manifest) -> tuple[passes.Step, ...]:
    """Parse the chain; options in it override the manifest, which overrides the profile."""
    # For "quantize:samples=64" with a profile of {scheme: u8s8, samples: 256} the options are
    # {scheme: u8s8, samples: 64}.
    steps: list[passes.Step] = []
    for step in passes.parse_chain(chain_text):
        table = step.definition.table
        options = {**target.read_table(table), **manifest.read_table(table), **step.options}
        steps.append(passes.Step(step.name, options))
    passes.check_chain(steps)
    return tuple(steps)


def _gates(
    target: Target, manifest: Manifest, strict: bool, max_drop: float | None
) -> tuple[dict[str, float], frozenset[str]]:
    quality = {**target.quality, **manifest.quality}
    if "max_drop" in manifest.quality and "metric_ratio" not in manifest.quality:
        # The user's bound on the metric replaces MLPerf's.
        quality.pop("metric_ratio", None)
    if strict:
        for gate, bound in target.strict.items():
            # A manifest may be stricter: of snr_db 40 and 30, 40 stays.
            if gate in MINIMA and gate in quality:
                bound = max(bound, quality[gate])
            quality[gate] = bound
    user_gates = set(manifest.quality)
    if max_drop is not None:
        # The same for a bound of the manifest: the command line overrides it.
        quality.pop("metric_ratio", None)
        user_gates.discard("metric_ratio")
        quality["max_drop"] = max_drop
        user_gates.add("max_drop")
    return quality, frozenset(user_gates)
