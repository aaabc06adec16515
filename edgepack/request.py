"""Request of a build: flags override the manifest, which overrides the target's defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgepack import passes
from edgepack.bundle.wheels import check as check_wheels
from edgepack.cache import default_folder
from edgepack.data import Classes, PythonSamples, Split, read_class_file
from edgepack.data.own_code import UserCode, read_code
from edgepack.data.raw.recordings import AudioOptions
from edgepack.data.text.tokenizer import TextOptions
from edgepack.errors import SpecError
from edgepack.metrics.catalogue import check_metrics
from edgepack.metrics.functions import name_metric
from edgepack.metrics.protocol import MetricSource
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Tensor
from edgepack.source.live import LiveModel
from edgepack.spec.gates import merge_gates
from edgepack.spec.manifest import Manifest
from edgepack.spec.objective import Objective, parse_objective
from edgepack.spec.pictures import parse_pictures
from edgepack.spec.target import Target
from edgepack.spec.tensors import Span

DEFAULT_OUTPUT = "{name}-{target}.edgepack"


Samples = str | PythonSamples
"""Source of samples: a path, "module:function", or values of a Python program; "" for none."""


@dataclass(frozen=True)
class Request:
    """Complete description of a build, without anything that needs the loaded model.

    Attributes:
        model: the file or folder of the trained model, or a module in memory.
        target: the device profile.
        output: path of the bundle.
        overwrite: True if an existing bundle with other content may be replaced.
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
        samples: source of both calibration and evaluation samples; "" for separate ones.
        split: division of that source; None if it has separate parts.
        classes: names of the classes, as far as the user states them.
        preprocessing: conversion of raw samples to the inputs; None without one in the manifest.
        metrics: the task metrics, the primary one first; none takes top-1 if there are labels for
            an output's decisions.
        postprocess: function that decodes the outputs, for the metrics as on the device; "" for
            none.
        text: conversion of texts to tokens, as far as the manifest sets it.
        preprocess: the user's own conversion of samples, "file.py:function"; "" for none.
        code: the files of `preprocess` and `postprocess`, which the bundle carries.
        audio: conversion of recordings, as far as the manifest sets it; None without a table.
        allow_chance: True if the original may be no better than guessing.
        chain: the passes in order, with options of the profile and the manifest merged in.
        chain_is_default: True if it is the profile's, so that forms without it compete as well.
        optimize: objective by which the forms of the model compete.
        quality: the gates, including those that apply only with labels.
        explicit_gates: names of the gates that the user set; these apply in any case.
        metric_gates: by metric, bounds beside those of `quality`: max_drop, ratio, min and max.
        reference_samples: number of samples in the bundle; None for as many as fit 4 MiB,
            from 4 to 64, and 4 to 8 of raw data.
        latency: MLPerf run length of the measurement ("smoke", "quick", "normal"), or "none".
        wheels: True to include the device's wheels in the bundle.
        emulate: True to verify on the target's CPUs if they can be emulated.
        allow_unverified: True if the build may end with the verdict UNVERIFIED.
        cache: folder of the stage cache.
        refresh: recompute all stages.
        sign: the key to sign the bundle with; None for no signature.
    """

    model: Path | LiveModel
    target: Target
    output: Path
    name: str
    base: Path = Path()
    arch: str = ""
    arch_args: Mapping[str, object] = field(default_factory=dict)
    weights: str = ""
    strip_prefix: str = ""
    trust_pickle: bool = False
    inputs: tuple[Tensor, ...] = ()
    axes: Mapping[str, Span] = field(default_factory=dict)
    output_kinds: Mapping[str, str | None] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    calibration: Samples = ""
    evaluation: Samples = ""
    training: Samples = ""
    random: bool = False
    files: tuple[Path, ...] = ()
    samples: str = ""
    split: Split | None = None
    classes: Classes = field(default_factory=Classes)
    preprocessing: Preprocessing | None = None
    metrics: tuple[MetricSource, ...] = ()
    postprocess: str = ""
    text: TextOptions = field(default_factory=TextOptions)
    audio: AudioOptions | None = None
    preprocess: str = ""
    code: UserCode = field(default_factory=UserCode)
    allow_chance: bool = False
    chain: tuple[passes.Step, ...] = ()
    chain_is_default: bool = False
    optimize: Objective = field(default_factory=Objective)
    quality: Mapping[str, float] = field(default_factory=dict)
    explicit_gates: frozenset[str] = frozenset()
    metric_gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reference_samples: int | None = None
    latency: str = "smoke"
    wheels: bool = False
    emulate: bool = True
    allow_unverified: bool = False
    cache: Path = field(default_factory=default_folder)
    refresh: bool = False
    sign: Path | None = None
    overwrite: bool = True

    @property
    def generates_inputs(self) -> bool:
        """True without samples, for a chain that needs none: inputs are generated."""
        if self.calibration or self.evaluation or self.random:
            return False
        roles = ("calibration", "training")
        return not any(passes.list_passes_needing(role, self.chain) for role in roles)

    @property
    def metric(self) -> str:
        """Name of the primary metric; "" for none."""
        return name_metric(self.metrics[0]) if self.metrics else ""

    def list_inputs(self) -> tuple[Path, ...]:
        """Return the files and folders that the build reads."""
        texts = [self.arch, self.postprocess, self.preprocess, self.text.tokenizer]
        for samples in (self.calibration, self.evaluation, self.training):
            if isinstance(samples, str):
                texts.append(samples)
        for metric in self.metrics:
            if isinstance(metric, str) and ":" in metric:
                texts.append(metric)
        # "data.py:samples" may be a file of that name, or the function in data.py: list both.
        parts = {*texts, *(text.rpartition(":")[0] for text in texts)} - {""}
        key = [self.sign] if self.sign else []
        model = [self.model] if isinstance(self.model, Path) else []
        return (*model, *self.files, *key, *sorted({Path(part) for part in parts}))


@dataclass(frozen=True)
class Flags:
    """Options of the command line, each with the value of an option that is not given.

    Attributes:
        output: path of the bundle, in which "{name}" and "{target}" are replaced; None to name it
            after the model and the target.
        arch: "module:factory" for a state dict.
        arch_args: keyword arguments of the factory, added to those of the manifest.
        weights: the key of the weights in a checkpoint.
        strip_prefix: prefix to remove from the names of a checkpoint's weights.
        trust_pickle: True if code in the model's file may run.
        inputs: declared inputs.
        axes: sizes of dynamic axes, added to those of the manifest.
        calibration: source of the calibration samples.
        evaluation: source of the evaluation samples.
        training: source of the training samples.
        samples: source of both calibration and evaluation samples.
        split: share of its samples that are for evaluation.
        split_seed: seed of their choice.
        pictures: preprocessing of pictures in one line; replaces the manifest's.
        classes: file with the names of the classes.
        random_calibration: True if random numbers replace the calibration samples.
        metrics: the task metrics, the primary one first.
        postprocess: function that decodes the outputs for the metrics.
        gates: gates, such as "f1.max_drop=1" and "snr_db=25".
        allow_chance: True if the original may be no better than guessing.
        chain: text of the chain; None for that of the manifest or the profile.
        optimize: text of the objective; "" for that of the manifest.
        max_drop: largest loss of the metric in points.
        strict: True for the profile's stricter gates.
        latency: run length of the latency measurement, or "none".
        wheels: True to include the device's wheels in the bundle.
        no_emulate: True to skip the verification on emulated CPUs.
        allow_unverified: True if the build may end with the verdict UNVERIFIED.
        refresh: recompute all stages.
        sign: the key to sign the bundle with.
        force: overwrite a bundle with other content at the default path.
    """

    output: Path | None = None
    arch: str = ""
    arch_args: Mapping[str, object] = field(default_factory=dict)
    weights: str = ""
    strip_prefix: str = ""
    trust_pickle: bool = False
    inputs: tuple[Tensor, ...] = ()
    axes: Mapping[str, Span] = field(default_factory=dict)
    calibration: Samples = ""
    evaluation: Samples = ""
    training: Samples = ""
    samples: str = ""
    split: float | None = None
    split_seed: int | None = None
    pictures: str = ""
    classes: Path | None = None
    random_calibration: bool = False
    metrics: tuple[MetricSource, ...] = ()
    postprocess: str = ""
    gates: tuple[str, ...] = ()
    allow_chance: bool = False
    chain: str | None = None
    optimize: str = ""
    max_drop: float | None = None
    strict: bool = False
    latency: str = "smoke"
    wheels: bool = False
    no_emulate: bool = False
    allow_unverified: bool = False
    refresh: bool = False
    sign: Path | None = None
    force: bool = False


def resolve(
    model: Path | LiveModel, target: Target, manifest: Manifest, flags: Flags | None = None
) -> Request:
    """Merge flags, manifest and profile, in this order of precedence.

    Raises SpecError or ChainError if they contradict each other.
    """
    flags = flags or Flags()
    _check_flags(flags)
    _check_sources(manifest, flags)
    if flags.wheels:
        check_wheels(target)
    # An empty --metric, as of an unset variable of a script, is none.
    metrics = tuple(source for source in flags.metrics if not isinstance(source, str) or source)
    metrics = metrics or _resolve_metrics(manifest)
    check_metrics(metrics)
    names = [name_metric(source) for source in metrics]
    gates = merge_gates(target, manifest, names, flags.gates, flags.max_drop, flags.strict)
    chain = _merge_chain(target, manifest, flags)
    manifest = _merge_source(manifest, flags)
    values, flags = _split_values(flags)
    manifest = _merge_samples(manifest, flags)
    name = manifest.name or _name_model(model)
    preprocess = _resolve_function(manifest, manifest.preprocess)
    postprocess = flags.postprocess or _resolve_function(manifest, manifest.postprocess)
    return Request(
        model=model,
        target=target,
        output=_resolve_output(flags.output, name, target),
        name=name,
        base=manifest.folder,
        arch=manifest.arch,
        arch_args=manifest.arch_args,
        weights=manifest.weights,
        strip_prefix=manifest.strip_prefix,
        trust_pickle=flags.trust_pickle,
        inputs=manifest.inputs,
        axes=manifest.axes,
        output_kinds=manifest.output_kinds,
        output_axes=manifest.output_axes,
        calibration=values.get("calibration", manifest.calibration),
        evaluation=values.get("evaluation", manifest.evaluation),
        training=values.get("training", manifest.training),
        random=flags.random_calibration,
        files=tuple(path for path in (target.path, manifest.path) if path),
        samples=manifest.samples,
        split=_read_split(manifest),
        classes=_read_classes(manifest, flags),
        preprocessing=_read_preprocessing(manifest, flags),
        metrics=metrics or gates.default_metrics,
        postprocess=postprocess,
        preprocess=preprocess,
        code=read_code(preprocess, postprocess, target.python),
        text=_read_text_options(manifest),
        audio=None if manifest.audio is None else AudioOptions(**manifest.audio),
        allow_chance=flags.allow_chance or manifest.allow_chance,
        chain=chain,
        chain_is_default=_is_default(chain, manifest, flags),
        optimize=parse_objective(flags.optimize or manifest.optimize),
        quality=gates.quality,
        explicit_gates=gates.explicit,
        metric_gates=gates.metrics,
        reference_samples=manifest.reference_samples,
        latency=flags.latency,
        wheels=flags.wheels,
        emulate=manifest.emulate and not flags.no_emulate,
        allow_unverified=flags.allow_unverified,
        refresh=flags.refresh,
        sign=flags.sign,
        # A path that the user states is the user's word; the default one is edgepack's.
        overwrite=flags.force or flags.output is not None,
    )


def _resolve_output(output: Path | None, name: str, target: Target) -> Path:
    """Return the path of the bundle; "{name}" and "{target}" in it are replaced."""
    # "out/{name}-{target}.edgepack" is "out/digits-cpu-fbgemm.edgepack".
    text = str(output or DEFAULT_OUTPUT)
    return Path(text.replace("{name}", name).replace("{target}", target.name))


def _check_flags(flags: Flags) -> None:
    """Refuse options that contradict each other. Raises SpecError."""
    if flags.random_calibration and flags.calibration:
        raise SpecError(
            "calibration-twice",
            "calibration samples and random calibration were both requested",
            why="--calibration and --random-calibration exclude each other",
            hint="remove one of them",
        )
    if flags.max_drop is None:
        return
    if flags.strict:
        raise SpecError(
            "max-drop",
            "two gates on the loss of the metric were requested",
            why="--strict and --max-drop exclude each other: each sets the gate on the metric",
            hint="remove one of them",
        )
    if not math.isfinite(flags.max_drop):
        raise SpecError(
            "max-drop",
            "the bound on the loss of the metric is not valid",
            why=f"--max-drop {flags.max_drop} is not a number of points",
            hint="pass a finite number, such as --max-drop 1",
        )


def _check_sources(manifest: Manifest, flags: Flags) -> None:
    """Refuse a single source of samples beside separate ones. Raises SpecError."""
    others = {
        "--calibration": flags.calibration,
        "--evaluation": flags.evaluation,
        "--random-calibration": flags.random_calibration,
    }
    for option, value in others.items():
        if flags.samples and value:
            raise SpecError(
                "samples-twice",
                "samples were requested from two sources",
                why=f"--samples and {option} exclude each other",
                hint="--samples serves both roles; remove one of them",
            )
    if flags.split is not None and not (flags.samples or manifest.samples):
        raise SpecError(
            "split-alone",
            "there is no source of samples to split",
            why="--split divides the samples of --samples",
            hint=f"--samples PATH --split {flags.split:g}",
        )


def _read_split(manifest: Manifest) -> Split | None:
    if manifest.split is None:
        return None
    return Split(manifest.split, manifest.seed)


def _read_classes(manifest: Manifest, flags: Flags) -> Classes:
    """Return the names of the classes. Raises DataError."""
    folders = manifest.class_folders
    if flags.classes is not None:
        return Classes(read_class_file(flags.classes), str(flags.classes), folders)
    if manifest.class_file:
        path = manifest.folder / manifest.class_file
        return Classes(read_class_file(path), str(path), folders)
    return Classes(manifest.class_names, f"[classes] in {manifest.path}", folders)


def _read_preprocessing(manifest: Manifest, flags: Flags) -> Preprocessing | None:
    if flags.pictures:
        return Picture(**parse_pictures(flags.pictures))
    if manifest.pictures is not None:
        return Picture(**manifest.pictures)
    return None


def _name_model(model: Path | LiveModel) -> str:
    """Return a name for file names: "my-model" for "my model.onnx"."""
    name = model.name
    if isinstance(model, Path):
        name = model.resolve().stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "model"


def _merge_source(manifest: Manifest, flags: Flags) -> Manifest:
    """Return the manifest with the flags that describe the model and its inputs."""
    return replace(
        manifest,
        arch=flags.arch or _resolve_path(manifest, manifest.arch),
        arch_args={**manifest.arch_args, **flags.arch_args},
        weights=flags.weights or manifest.weights,
        strip_prefix=flags.strip_prefix or manifest.strip_prefix,
        inputs=flags.inputs or manifest.inputs,
        axes={**manifest.axes, **flags.axes},
    )


def _split_values(flags: Flags) -> tuple[dict[str, PythonSamples], Flags]:
    """Return the samples that are values of a program, by role, and the flags without them."""
    values: dict[str, PythonSamples] = {}
    roles = {
        "calibration": flags.calibration,
        "evaluation": flags.evaluation,
        "training": flags.training,
    }
    for role, samples in roles.items():
        if isinstance(samples, PythonSamples):
            values[role] = samples
    if not values:
        return values, flags
    return values, replace(flags, **dict.fromkeys(values, ""))  # type: ignore[arg-type]


def _merge_samples(manifest: Manifest, flags: Flags) -> Manifest:
    """Return the manifest with the samples of the flags, by paths from the current folder."""
    # Values of a program are split off before, so that all of these are texts.
    calibration, evaluation = str(flags.calibration), str(flags.evaluation)
    # Random calibration ignores the samples of the manifest, but not those on the command line.
    if not flags.random_calibration:
        calibration = calibration or _resolve_path(manifest, manifest.calibration)
        evaluation = evaluation or _resolve_path(manifest, manifest.evaluation)
    training = str(flags.training) or _resolve_path(manifest, manifest.training)
    samples = flags.samples
    if not samples and not flags.random_calibration:
        samples = _resolve_path(manifest, manifest.samples)
    if samples:
        calibration = str(flags.calibration) or samples
        evaluation = str(flags.evaluation) or samples
        # All but the evaluation samples may train, too.
        training = training or samples
    split = manifest.split if flags.split is None else flags.split
    seed = manifest.seed if flags.split_seed is None else flags.split_seed
    # A source on the command line is not the one that the manifest splits.
    if flags.samples:
        split = flags.split
    return replace(
        manifest,
        calibration=calibration,
        evaluation=evaluation,
        training=training,
        samples=samples,
        split=split,
        seed=seed,
    )


def _resolve_path(manifest: Manifest, text: str) -> str:
    """Return a path of a manifest, or "file.py:function", relative to the current folder.

    Paths on the command line are relative to the current folder, those in a manifest to its own:
    "data/cal.npz" in "models/m.toml" is "models/data/cal.npz". The name of a module is returned
    unchanged.
    """
    if not text:
        return ""
    name, colon, function = text.rpartition(":")
    if not colon:
        return str(manifest.folder / text)
    # "torchvision.models:resnet18" names a module: there is no such file.
    path = manifest.folder / name
    if path.exists():
        return f"{path}:{function}"
    return text


def _read_text_options(manifest: Manifest) -> TextOptions:
    """Return the table [text], with the path of the tokenizer relative to the current folder."""
    options = TextOptions(**manifest.text)
    return replace(options, tokenizer=_resolve_path(manifest, options.tokenizer))


def _resolve_metrics(manifest: Manifest) -> tuple[MetricSource, ...]:
    """Return the manifest's metrics; files of functions relative to the current folder."""
    return tuple(_resolve_function(manifest, text) for text in manifest.metrics)


def _resolve_function(manifest: Manifest, text: str) -> str:
    # "top1" is a name and no path.
    return _resolve_path(manifest, text) if ":" in text else text


def _is_default(chain: tuple[passes.Step, ...], manifest: Manifest, flags: Flags) -> bool:
    """Return True if the user has requested neither a chain nor options of its passes."""
    if flags.chain is not None or manifest.chain:
        return False
    return not any(manifest.read_table(step.definition.table) for step in chain)


def _merge_chain(target: Target, manifest: Manifest, flags: Flags) -> tuple[passes.Step, ...]:
    """Parse the chain; options in it override the manifest, which overrides the profile."""
    text = flags.chain
    # An empty --chain is a chain without passes, unlike an absent one.
    if text is None:
        text = manifest.chain or target.chain
    # For "quantize:samples=64" with a profile of {scheme: u8s8, samples: 256} the options are
    # {scheme: u8s8, samples: 64}.
    steps: list[passes.Step] = []
    for step in passes.parse_chain(text):
        table = step.definition.table
        options = {**target.read_table(table), **manifest.read_table(table), **step.options}
        steps.append(passes.Step(step.name, options))
    passes.check_chain(steps)
    return tuple(steps)
