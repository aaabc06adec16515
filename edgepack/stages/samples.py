"""Stage `samples`: open and check the samples for calibration, training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgepack import data, passes
from edgepack.context import Context, SampleSets
from edgepack.data.samples import Samples
from edgepack.data.stream import SampleStream
from edgepack.errors import DataError
from edgepack.request import Request
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Tensor
from edgepack.source.model import Source
from edgepack.stages.generated import generate_samples
from edgepack.stages.preprocessing import choose_preprocessing, name_classes
from edgepack.stages.sources import (
    check_class_names,
    describe_sources,
    detail_sources,
    fill_class_names,
)

# Random samples for a calibration, and those that only compare two models.
RANDOM_COUNT, GENERATED_COUNT = 128, 32


def list_missing_samples(request: Request) -> list[str]:
    """Return the roles of samples that the chain needs and the request lacks."""
    specs = {"calibration": request.calibration or request.random, "training": request.training}
    missing = []
    for role, spec in specs.items():
        if not spec and passes.list_passes_needing(role, request.chain):
            missing.append(role)
    return missing


def open_samples(context: Context, source: Source, inputs: tuple[Tensor, ...]) -> SampleSets:
    """Open the samples, and check every one before hours are spent on them."""
    request, ledger = context.request, context.ledger
    with ledger.stage("samples") as stage:
        preprocessing = choose_preprocessing(request, source, inputs, stage)
        samples = _open_roles(request, inputs, preprocessing, name_classes(request, source))
        if request.random or request.generates_inputs:
            role, count = "calibration", RANDOM_COUNT
            if request.generates_inputs:
                role, count = "evaluation", GENERATED_COUNT
            samples[role], text = generate_samples(request, source, inputs, count)
            stage.note(f"generated {text}")
        _require_samples(request, samples, inputs)
        check_class_names(samples)
        calibration = None
        if calibrates(request):
            calibration = samples.get("calibration")
        # Judging on the calibration samples flatters the model, and is announced below.
        judged = "evaluation"
        if judged not in samples:
            judged = "calibration"
        evaluation = samples[judged]
        # Samples in both roles are checked once.
        separate = None
        if evaluation is not calibration:
            separate = evaluation
        lint = data.lint(calibration, separate, inputs, training=samples.get("training"))
        for role, count in lint.counts.items():
            stage.note(f"{role}: {count:,} samples")
        stage.note(*lint.notes)
        stage.note(*describe_sources(samples))
        stage.detail(
            counts=dict(lint.counts), digests=dict(lint.digests), **detail_sources(samples)
        )
    # Of generated inputs it is no news that a mask is 1 everywhere.
    if not request.generates_inputs:
        ledger.warn(*lint.warnings)
    if request.random:
        ledger.warn(
            "calibrated on random data: nothing is verified on real inputs, do not ship this"
        )
    elif request.generates_inputs:
        ledger.warn("no samples: the inputs are generated, and nothing is verified on real ones")
    elif "evaluation" not in samples:
        ledger.warn("no evaluation samples: quality is judged on the calibration samples")
    proven = not request.random and not request.generates_inputs
    if isinstance(calibration, SampleStream):
        # A pass that runs them can say how far it is.
        calibration = replace(calibration, count=lint.counts["calibration"])
    return SampleSets(calibration, evaluation, lint, proven, samples.get("training"))


def _open_roles(
    request: Request,
    inputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None,
    classes: data.Classes,
) -> dict[str, Samples]:
    """Return the samples of the request by role; training samples only if a pass trains."""
    specs = {"calibration": request.calibration, "evaluation": request.evaluation}
    if passes.list_passes_needing("training", request.chain):
        specs["training"] = request.training
    check_split(request)
    samples: dict[str, Samples] = {}
    for role, spec in specs.items():
        # A role of its own on the command line is not part of the source that is split.
        split = request.split if spec == request.samples else None
        if spec:
            stream = data.open_samples(
                spec,
                inputs,
                preprocessing=preprocessing,
                search=request.base,
                role=role,
                classes=classes,
                columns=request.text,
                split=split,
            )
            samples[role] = fill_class_names(stream, classes)
    return samples


def check_split(request: Request) -> None:
    """Refuse a source for both roles that has no parts, or parts as well as a split."""
    if not request.samples:
        return
    divided = data.has_parts(request.samples)
    if divided and request.split is not None:
        raise DataError(
            "samples-split",
            f"{request.samples} is divided already",
            why="it has parts for calibration and for evaluation, such as train and val",
            hint="remove --split to use them, or name one of the parts with --samples",
        )
    if not divided and request.split is None:
        raise DataError(
            "samples-split",
            f"{request.samples} does not say which samples are for evaluation",
            why="it has no parts such as train and val",
            hint="--split 0.2 evaluates on a fifth of them",
        )


def calibrates(request: Request) -> bool:
    """Return True if a pass needs calibration samples, or a repair, which ranks layers on them."""
    if passes.list_passes_needing("calibration", request.chain):
        return True
    return any(step.read().repairs for step in request.chain)


def _require_samples(
    request: Request, samples: Mapping[str, Samples], inputs: tuple[Tensor, ...]
) -> None:
    """Raise DataError samples-missing or training-missing for a role that the build needs."""
    absent = list_missing_samples(request)
    if "calibration" in absent:
        raise DataError(
            "samples-missing",
            "the chain needs calibration samples, but there are none",
            why=_describe_inputs(inputs),
            hint="--calibration PATH (.npz, .npy, a folder of them or of pictures, or "
            "module:function)\n"
            "--samples PATH --split 0.2 divides one source for calibration and evaluation\n"
            "--chain quantize:mode=dynamic, quantize:mode=weights and none need no samples\n"
            "--random-calibration builds without; its verdict is UNVERIFIED",
        )
    if "training" in absent:
        name = passes.list_passes_needing("training", request.chain)[0]
        raise DataError(
            "training-missing",
            f"{name} trains the network, but there are no training samples",
            why=_describe_inputs(inputs),
            hint="--training PATH (.npz, .npy, a folder of them, or module:function); "
            "labels are optional",
        )
    if "evaluation" not in samples and "calibration" not in samples:
        raise DataError(
            "samples-missing",
            "there are no samples to verify the model on",
            why=_describe_inputs(inputs),
            hint="--evaluation PATH (.npz, .npy, a folder of them, or module:function)",
        )


def _describe_inputs(inputs: tuple[Tensor, ...]) -> str:
    lines = "\n".join(f"  {tensor}" for tensor in inputs)
    return f"these inputs need arrays, with samples along axis 0:\n{lines}"
