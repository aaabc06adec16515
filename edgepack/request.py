"""What a build was asked for: flags over the manifest over the target's defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack import chain
from edgepack.bundle.wheels import check as check_wheels
from edgepack.cache import default_folder
from edgepack.data.preprocessing import Preprocessing
from edgepack.errors import SpecError
from edgepack.runtime.tensor import Tensor
from edgepack.spec.manifest import Manifest
from edgepack.spec.target import Target
from edgepack.spec.tensors import Span

# Bounds for which more is stricter, so that --strict takes the larger of two.
MINIMA = ("snr_db", "cosine", "agreement", "metric_ratio")


@dataclass(frozen=True)
class Request:
    """One build, everything settled that can be settled without loading the model.

    Attributes:
        model: the file or folder of the trained model.
        target: the device profile.
        output: where the bundle is to stand.
        name: the model's name in the bundle.
        base: what relative paths of samples and of the factory start from.
        arch: "module:factory" for a state dict.
        arch_args: keyword arguments of the factory.
        weights: the key under which a checkpoint holds the weights; "" for the usual keys.
        strip_prefix: what to remove from the front of the names of a checkpoint's weights.
        trust_pickle: whether code in the model's file may run.
        inputs: as stated; empty where they are to be inferred.
        axes: the sizes of dynamic axes that an engine is built for, by name, as stated.
        output_kinds: by output name: one of `tensor.KINDS`, or None.
        output_axes: by output name, the axis of the classes, where it is stated.
        calibration: where the calibration samples are; "" for none.
        evaluation: where the evaluation samples are; "" for none.
        training: where the training samples are; "" for none.
        random: whether random numbers stand in for calibration samples.
        files: further files that the build reads: manifest, profile.
        preprocessing: how a picture becomes an input.
        metric: the task metric; "" takes top-1 where there are labels of an output's decisions.
        allow_chance: whether the original may be right no more often than by guessing.
        chain: the passes, in order, with the profile's and the manifest's options laid in.
        quality: the gates, before it is known whether there are labels.
        stated: the gates that the user stated himself: those are held in any case.
        reference_samples: how many samples the bundle carries; None for as many as fit 4 MiB.
        latency: MLPerf run length of the measurement ("smoke", "quick", "normal"), or "none".
        wheels: whether the bundle shall carry the device's wheels.
        emulate: whether it shall be proved on the target's CPUs, where they can be emulated.
        cache: folder of the stage cache.
        refresh: compute everything anew.
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
    chain: tuple[chain.Step, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    stated: frozenset[str] = frozenset()
    reference_samples: int | None = None
    latency: str = "smoke"
    wheels: bool = False
    emulate: bool = True
    cache: Path = field(default_factory=default_folder)
    refresh: bool = False
    sign: Path | None = None

    def reads(self) -> tuple[Path, ...]:
        """The files and folders that the build reads."""
        named = (self.arch, self.calibration, self.evaluation, self.training)
        paths = {Path(part) for text in named for part in (text, text.rpartition(":")[0]) if part}
        key = [self.sign] if self.sign else []
        return (self.model, *self.files, *key, *sorted(paths))


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
    """Lay flags over the manifest over the profile.

    Raises SpecError or ChainError where they contradict each other.
    """
    if random_calibration and calibration:
        raise SpecError(
            "calibration-twice",
            "calibration samples were given and refused at once",
            why="--calibration and --random-calibration exclude each other",
            hint="leave one of them out",
        )
    if max_drop is not None and (strict or not math.isfinite(max_drop)):
        raise SpecError(
            "max-drop",
            "this bound on the loss of the metric cannot be held",
            why="--strict and --max-drop exclude each other: each is the gate on the metric"
            if strict
            else f"--max-drop {max_drop} is not a number of points",
            hint="leave one of them out, or --max-drop 1",
        )
    if wheels:
        check_wheels(target)
    name = manifest.name or re.sub(r"[^A-Za-z0-9_.-]+", "-", model.resolve().stem).strip("-.")
    written = passes if passes is not None else manifest.chain or target.chain
    quality, stated = _gates(target, manifest, strict, max_drop)
    # A path on the command line starts from where the user stands, one in a manifest from it.
    samples = _Place(manifest.folder)
    return Request(
        model=model,
        target=target,
        output=output or Path(f"{name or 'model'}-{target.name}.edgepack"),
        name=name or "model",
        base=manifest.folder,
        arch=arch or samples.of(manifest.arch),
        arch_args={**manifest.arch_args, **(arch_args or {})},
        weights=weights or manifest.weights,
        strip_prefix=strip_prefix or manifest.strip_prefix,
        trust_pickle=trust_pickle,
        inputs=inputs or manifest.inputs,
        axes={**manifest.axes, **(axes or {})},
        output_kinds=manifest.output_kinds,
        output_axes=manifest.output_axes,
        calibration="" if random_calibration else calibration or samples.of(manifest.calibration),
        evaluation=evaluation or ("" if random_calibration else samples.of(manifest.evaluation)),
        training=training or samples.of(manifest.training),
        random=random_calibration,
        files=tuple(path for path in (target.path, manifest.path) if path),
        preprocessing=None if manifest.pictures is None else Preprocessing(**manifest.pictures),
        metric=metric or manifest.metric,
        allow_chance=allow_chance or manifest.allow_chance,
        chain=_steps(written, target, manifest),
        quality=quality,
        stated=stated,
        reference_samples=manifest.reference_samples,
        latency=latency,
        wheels=wheels,
        emulate=manifest.emulate and not no_emulate,
        refresh=refresh,
        sign=sign,
    )


@dataclass(frozen=True)
class _Place:
    """Where the paths of a manifest start from."""

    folder: Path

    def of(self, text: str) -> str:
        """A path, or the file of "file.py:function", seen from the current folder."""
        name, colon, function = text.rpartition(":")
        path = self.folder / (name if colon else text)
        is_path = bool(text) and (path.exists() or not colon)
        return f"{path}{colon}{function}" if is_path and colon else str(path) if is_path else text


def _steps(written: str, target: Target, manifest: Manifest) -> tuple[chain.Step, ...]:
    """The chain's steps, what was written for each over the manifest's over the profile's."""
    steps = tuple(
        chain.Step(
            step.name,
            {
                **target.passes.get(step.name, {}),
                **manifest.passes.get(step.name, {}),
                **step.options,
            },
        )
        for step in chain.parse(written)
    )
    chain.check(steps)
    return steps


def _gates(
    target: Target, manifest: Manifest, strict: bool, max_drop: float | None
) -> tuple[dict[str, float], frozenset[str]]:
    quality = {**target.quality, **manifest.quality}
    if "max_drop" in manifest.quality and "metric_ratio" not in manifest.quality:
        # The user's own bound on the metric takes the place of MLPerf's.
        quality.pop("metric_ratio", None)
    if strict:
        for gate, bound in target.strict.items():
            looser = quality.get(gate)
            quality[gate] = max(bound, looser) if looser is not None and gate in MINIMA else bound
    stated = set(manifest.quality)
    if max_drop is not None:
        # The same, also of one that a manifest states.
        quality.pop("metric_ratio", None)
        stated.discard("metric_ratio")
        quality["max_drop"] = max_drop
        stated.add("max_drop")
    return quality, frozenset(stated)
