"""Stage `samples`: what the model is calibrated and judged on, looked at before anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgepack import chain, data
from edgepack.data.samples import Samples
from edgepack.errors import DataError
from edgepack.ledger import Ledger
from edgepack.request import Request
from edgepack.runtime.tensor import Tensor

RANDOM_COUNT = 128
RANDOM_SEED = 0
# Size of a named axis that no sample shows.
RANDOM_AXIS = 16


@dataclass(frozen=True)
class SampleSets:
    """What the model is calibrated, trained and judged on.

    Attributes:
        calibration: None where the chain looks at none, and where it needs none and has none.
        evaluation: what quality is judged on.
        lint: counts, digests and warnings of all.
        proven: False where they are random numbers.
        training: None where the chain does not train.
    """

    calibration: Samples | None
    evaluation: Samples
    lint: Any
    proven: bool
    training: Samples | None = None


def missing(request: Request) -> list[str]:
    """The roles of samples that the chain needs and that nothing was given for."""
    given = {"calibration": request.calibration or request.random, "training": request.training}
    return [role for role, spec in given.items() if chain.needs(request.chain, role) and not spec]


def open_samples(request: Request, inputs: tuple[Tensor, ...], ledger: Ledger) -> SampleSets:
    """Open the samples and look at every one before hours are spent on them."""
    with ledger.stage("samples") as stage:
        needs = chain.needs(request.chain, "calibration")
        trains = chain.needs(request.chain, "training")
        absent = missing(request)
        given = {
            role: data.open_samples(
                spec,
                inputs,
                preprocessing=request.preprocessing,
                search=request.base,
                same=role != "training",
            )
            for role, spec in (
                ("calibration", request.calibration),
                ("evaluation", request.evaluation),
                ("training", request.training if trains else ""),
            )
            if spec
        }
        if request.random:
            given["calibration"] = _random(inputs)
        if "calibration" in absent:
            raise DataError(
                "samples-missing",
                "the chain needs calibration samples, and none were given",
                why=_wanted(inputs),
                hint="--calibration PATH (.npz, .npy, a folder of them, or module:function)\n"
                "--random-calibration builds without; its report is marked as not proven",
            )
        if "training" in absent:
            raise DataError(
                "training-missing",
                f"{trains[0]} trains the network, and there is nothing to train it on",
                why=_wanted(inputs),
                hint="--training PATH (.npz, .npy, a folder of them, or module:function); "
                "labels are optional",
            )
        # A repair looks at them as well.
        looked_at = needs or any(step.read().repairs for step in request.chain)
        calibration = given.get("calibration") if looked_at else None
        evaluation = given.get("evaluation", given.get("calibration"))
        if evaluation is None:
            raise DataError(
                "samples-missing",
                "there is nothing to prove the model on",
                why=_wanted(inputs),
                hint="--evaluation PATH (.npz, .npy, a folder of them, or module:function)",
            )
        # Samples that play both roles are looked at once.
        lint = data.lint(
            calibration,
            None if evaluation is calibration else evaluation,
            inputs,
            training=given.get("training"),
        )
        stage.note(*(f"{role}: {count:,} samples" for role, count in lint.counts.items()))
        stage.note(*lint.notes)
        stage.detail(counts=dict(lint.counts), digests=dict(lint.digests))
    ledger.warn(*lint.warnings)
    if request.random:
        ledger.warn(
            "calibrated on random numbers: nothing is proved about real inputs, do not ship this"
        )
    elif "evaluation" not in given:
        ledger.warn(
            "no evaluation samples: quality is judged on the samples that calibrated the model"
        )
    return SampleSets(calibration, evaluation, lint, not request.random, given.get("training"))


def _random(inputs: tuple[Tensor, ...]) -> Samples:
    axes = {dim for tensor in inputs for dim in tensor.shape[1:] if isinstance(dim, str)}
    return data.random_samples(
        inputs, count=RANDOM_COUNT, seed=RANDOM_SEED, sizes=dict.fromkeys(axes, RANDOM_AXIS)
    )


def _wanted(inputs: tuple[Tensor, ...]) -> str:
    wanted = "\n".join(f"  {tensor}" for tensor in inputs)
    return f"samples are arrays for these inputs, samples along axis 0:\n{wanted}"


def evaluation_of(samples: SampleSets) -> tuple[int, str]:
    """Number and digest of the samples that quality is judged on."""
    role = "evaluation" if "evaluation" in samples.lint.counts else "calibration"
    return samples.lint.counts[role], samples.lint.digests[role]
