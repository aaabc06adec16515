"""The example networks for TensorRT: each parses, builds and multiplies in integers, and loses
little. Their own weights and data where this machine has them, as `make test` fetches them."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from edgepack import data, graph
from edgepack.data.samples import Batch
from edgepack.engine import tensorrt_rtx
from edgepack.errors import DataError
from edgepack.ledger import Record
from edgepack.passes.half import HalfOptions, half
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.session.onnx_session import OnnxSession
from edgepack.runtime.session.rounding import round_halves
from edgepack.spec import manifest, target
from support import ROOT
from support.rtx_cases import linear_kernels, needs_rtx, plan_of, profiles_of

EXAMPLES = ROOT / "examples"
MANIFESTS = ROOT / "manifests"
OPSET = target.load("tensorrt-int8").opset
Feeds = Sequence[Mapping[str, np.ndarray]]


class Silent:
    """A progress that nobody looks at."""

    def begin(self, stage: str, total: int | None = None) -> None: ...
    def advance(self, steps: int = 1) -> None: ...
    def expect(self, total: int) -> None: ...
    def end(self, record: Record) -> None: ...
    def warn(self, message: str) -> None: ...


@dataclass(frozen=True)
class Case:
    """A network as ONNX, calls that calibrate it and others that judge it."""

    model: onnx.ModelProto
    calibration: Feeds
    evaluation: Feeds

    origin = "the example's samples"

    def batches(self, size: int) -> Iterator[Batch]:
        for feed in self.calibration:
            yield Batch(feed, None, 1)


def module(name: str) -> ModuleType:
    """A module of `examples/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def exported(network: torch.nn.Module, inputs: Any, feed: Any, names: Any) -> onnx.ModelProto:
    model = graph.export_module(network.eval(), inputs, feed, OPSET, names).model
    simplified: onnx.ModelProto = graph.simplify(model, feed).model
    return simplified


def stated(name: str) -> manifest.Manifest:
    return manifest.load(MANIFESTS / f"{name}.toml")


@cache
def efficientnet(folder: Path) -> Case:
    code, found = module("efficientnet_lite0"), stated("efficientnet-lite0")
    try:
        code.prepare(folder)
    except SystemExit as error:
        pytest.skip(str(error))
    network = code.model()
    network.load_state_dict(torch.load(folder / "efficientnet-lite0.pth", weights_only=True))
    preprocessing = Picture(**(found.pictures or {}))

    def crops(role: str, step: int) -> Feeds:
        samples = data.open_samples(str(folder / role), found.inputs, preprocessing=preprocessing)
        images = np.concatenate([batch.inputs["image"] for batch in samples.batches(16)])
        return [{"image": image[None]} for image in images[::step]]

    calibration, evaluation = crops("calibration", 14), crops("evaluation", 26)
    model = exported(network, found.inputs, calibration[0], tuple(found.output_kinds))
    return Case(model, calibration, evaluation)


@cache
def fashion(_: Path) -> Case:
    code, found = module("fashion_resnet"), stated("fashion-resnet")
    network = code.model(**found.arch_args)
    network.load_state_dict(load_file(EXAMPLES / "weights" / "fashion-resnet.safetensors"))
    try:
        calibration, evaluation = (
            [{"image": s["image"][None]} for s in itertools.islice(source(), 0, stop, 4)]
            for source, stop in ((code.calibration, 400), (code.evaluation, 2000))
        )
    except DataError as error:
        pytest.skip(f"{error.why}; {error.hint}")
    model = exported(network, found.inputs, calibration[0], tuple(found.output_kinds))
    return Case(model, calibration, evaluation)


@cache
def silero(_: Path) -> Case:
    code, found = module("silero_vad"), stated("silero-vad")
    try:
        network = code.pretrained()
    except DataError as error:
        pytest.skip(f"{error.why}; {error.hint}")
    calibration = list(itertools.islice(code.calibration(), 0, None, 9))
    evaluation = list(itertools.islice(code.evaluation(), 0, None, 3))
    model = exported(network, found.inputs, calibration[0], tuple(found.output_kinds))
    return Case(model, calibration, evaluation)


@cache
def bert(folder: Path) -> Case:
    """Untrained: what it would have learnt does not change its operators."""
    from edgepack import source

    torch.manual_seed(0)
    module("tiny_bert").new_model().save_pretrained(folder / "bert")
    found = source.load(folder / "bert", arch=None, arch_args={}, trust_pickle=False, search=())
    assert found.inputs is not None
    random = np.random.default_rng(0)
    feeds = [
        {
            tensor.name: np.ones((1, 24), np.int64)
            if "mask" in tensor.name
            else random.integers(1, 4000, (1, 24))
            for tensor in found.inputs
        }
        for _ in range(24)
    ]
    model = exported(found.module, found.inputs, feeds[0], found.output_names)
    return Case(model, feeds[:16], feeds[16:])


# name -> network, and how many kernels multiply integers in its plan.
CASES: dict[str, tuple[Any, int]] = {
    "efficientnet-lite0": (efficientnet, 50),
    "fashion-resnet": (fashion, 22),
    "silero-vad": (silero, 8),
    # Fourteen layers: the three projections of each of two blocks become one product.
    "tiny-bert": (bert, 10),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def quantized(case: Case, **options: Any) -> onnx.ModelProto:
    found: onnx.ModelProto = quantize(case.model, case, QuantizeOptions(**options), Silent()).model
    return found


@needs_rtx
@pytest.mark.parametrize("name", CASES)
def test_tensorrt_parses_it_and_every_layer_multiplies_integers(name: str, folder: Path) -> None:
    make, kernels = CASES[name]
    case = make(folder)
    few = Case(case.model, case.calibration[:4], case.evaluation)
    plain = quantized(
        few, scheme="tensorrt", range="full", calibrator="minmax", rounding="nearest",
        bias_correction=False,
    )  # fmt: skip
    model = half(plain, few, HalfOptions(), Silent()).model
    for capability in ("8.6", "8.9"):
        found = tensorrt_rtx.check(model.SerializeToString(), profiles_of(model), capability)
        assert found.engine_bytes > model.ByteSize()
    types = list(linear_kernels(plan_of(model)).values())
    assert types.count(("int8", "int8")) == kernels
    # What multiplies floats multiplies activations, and only a transformer does.
    assert len(types) == kernels or name == "tiny-bert"


def answers(model: onnx.ModelProto, feeds: Feeds, **options: bool) -> np.ndarray:
    session = OnnxSession(round_halves(model.SerializeToString()), **options)
    return np.concatenate([next(iter(session.run(feed).values())).ravel() for feed in feeds])


def snr_db(real: np.ndarray, found: np.ndarray) -> float:
    real = real.astype(np.float64)
    return float(10 * np.log10(np.square(real).sum() / np.square(real - found).sum()))


@pytest.mark.parametrize(
    ("name", "bound"), [("fashion-resnet", 30.0), ("efficientnet-lite0", 15.0)]
)
def test_symmetric_activations_cost_a_few_db(name: str, bound: float, folder: Path) -> None:
    """On all samples, with rounding by GPTQ: 34.5 dB against fbgemm's 38.7, 21.6 against 23.3."""
    case = CASES[name][0](folder)
    # Compensated rounding takes minutes on the larger one, and is not what differs.
    rounding = "gptq" if name == "fashion-resnet" else "nearest"
    real = answers(case.model, case.evaluation)
    affine = quantized(case, scheme="fbgemm", range="full", rounding=rounding)
    symmetric = quantized(case, scheme="tensorrt", range="full", rounding=rounding)
    found = snr_db(real, answers(symmetric, case.evaluation, literal=True))
    assert found > bound
    assert found > snr_db(real, answers(affine, case.evaluation)) - 7
    # fp16 in what is left costs nothing beside that.
    halved = half(symmetric, case, HalfOptions(), Silent()).model
    assert snr_db(real, answers(halved, case.evaluation, literal=True)) > found - 1
