"""Training on int8 arithmetic: the arithmetic is onnxruntime's, batch norms fold exactly, and the
network is what it was, but for its weights, when the training is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.graph import export_module, simplify
from edgepack.passes.aware.activation import Dynamic, Static
from edgepack.passes.aware.attach import Attached
from edgepack.passes.aware.fake import fake, fake_blocks, fake_weights
from edgepack.passes.aware.fold import find_folds, fold, fold_structure
from edgepack.passes.aware.sites import find_sites
from edgepack.passes.distill import DistillOptions, distill, replay
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.passes.quantize.scheme import WEIGHTS, fit_affine, fit_row_scales, fit_symmetric
from edgepack.passes.quantize.weights.int4 import quantize_blocks
from edgepack.passes.quantize.weights.rounding import round_to_nearest
from edgepack.passes.training.loop import Loop
from edgepack.progress import SilentProgress
from edgepack.runtime.tensor import Tensor
from support.quantize_nets import Arrays
from support.training_cases import context, drawn, network, same

pytestmark = pytest.mark.usefixtures("one_thread")

AWARE = DistillOptions(aware=True, epochs=2, batch_size=32, lr=1e-3)
NEAREST = QuantizeOptions(rounding="nearest", bias_correction=False, range="full")
IMAGE = (Tensor("image", "float32", ("batch", 3, 8, 8)),)
SCORES = (Tensor("scores", "float32", ("batch", 4), "scores"),)


def by_onnxruntime(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear, along axis 0 where there are several scales."""
    axis = {"axis": 0} if scale.ndim else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **axis),
    ]
    graph = helper.make_graph(
        nodes, "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape)],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero_point, "zero")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": values})[0])


def hard(count: int, scale: float) -> np.ndarray:
    """Values of all kinds: ties, borders, far outside, and drawn ones."""
    random = np.random.default_rng(3)
    ties = (np.arange(-300, 300) + 0.5) * np.float32(scale)
    return np.concatenate([ties, random.normal(0, 90 * scale, count), [0, 1e30, -1e30]]).astype(
        np.float32
    )


@pytest.mark.parametrize(
    ("scale", "zero_point", "kind"),
    [(0.1, 0, np.uint8), (0.037, 131, np.uint8), (1.0, 255, np.uint8), (0.25, 0, np.int8)],
)
def test_activations_are_onnxruntime_s(scale: float, zero_point: int, kind: type) -> None:
    values = hard(5000, scale)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    found = fake(
        torch.from_numpy(values), torch.tensor(scale), torch.tensor(float(zero_point)), low, high
    )
    expected = by_onnxruntime(values, np.float32(scale), np.asarray(zero_point, kind))
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("scheme", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (5, 40), (8, 1, 3, 3)])
def test_weights_are_those_of_quantize(shape: tuple[int, ...], scheme: str) -> None:
    """The integers are those that rounding to the nearest gives, the tie at the end too."""
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    steps, lowest = WEIGHTS[scheme]
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    scale = fit_row_scales(rows, steps)
    integers = round_to_nearest(rows / scale[:, None], paired=False, lowest=lowest)
    found = fake_weights(torch.from_numpy(weight), steps, lowest).numpy()
    expected = (integers * scale[:, None]).reshape(shape)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("width", "block"), [(64, 32), (50, 16), (7, 32)])
def test_four_bits_are_those_of_quantize(width: int, block: int) -> None:
    weight = np.random.default_rng(1).standard_normal((5, width)).astype(np.float32)
    weight[3] = 0
    expected = quantize_blocks(weight.astype(np.float64), block, None).rows(width)
    found = fake_blocks(torch.from_numpy(weight), block).numpy()
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_gradient_goes_straight_through_and_stops_where_it_was_clipped() -> None:
    values = torch.tensor([-0.2, -0.04, 0.0, 3.3, 25.5, 25.56, 40.0], requires_grad=True)
    fake(values, torch.tensor(0.1), torch.tensor(0.0), 0, 255).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (fake_weights(weight, 127.5, -128) * 2).sum().backward()
    assert weight.grad is not None
    # The largest of a row may lie half a step beyond 127, and is clipped by that.
    assert ((weight.grad == 2).sum(1) >= 3).all()


@pytest.mark.parametrize("ends", [(-1.3, 2.7), (0.0, 6.0), (-4.0, 0.0), (0.5, 3.0), (0.0, 0.0)])
def test_a_range_becomes_the_same_scale_and_zero_point(ends: tuple[float, float]) -> None:
    part = Static(*ends, ends, "fbgemm")
    scale, zero_point = part.affine()
    expected = fit_affine(*ends)
    assert (float(scale), int(zero_point)) == (pytest.approx(expected.scale), expected.zero_point)
    part = Static(-max(map(abs, ends)), max(map(abs, ends)), ends, "tensorrt")
    scale, zero_point = part.affine()
    assert int(zero_point) == 0
    assert float(scale) == pytest.approx(fit_symmetric(max(map(abs, ends))).scale, rel=1e-3)


def test_the_range_follows_what_is_seen_while_it_trains() -> None:
    part = Static(0.0, 4.0, (0.0, 8.0), "fbgemm")
    values = torch.full((4,), 16.0)
    part.eval()
    assert float(part(values).max()) == pytest.approx(4.0)
    for _ in range(2000):
        part.train()(values)
    # Half of the largest is what the calibrator had kept of it.
    assert float(part(values).max()) == pytest.approx(8.0, rel=1e-4)


def test_ranges_of_run_time_are_each_sample_s() -> None:
    values = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 5, 7)).astype(np.float32))
    values[1] *= 100
    found = Dynamic()(values)
    for sample, one in zip(values.numpy(), found.numpy(), strict=True):
        expected = fit_affine(float(sample.min()), float(sample.max()))
        assert np.abs(one - expected.fake(sample)).max() <= expected.scale * 1.001


# Batch norms


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with weights and statistics of its own, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make()
        for part in made.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_var is not None:
                part.running_mean.normal_()
                part.running_var.uniform_(0.2, 3)
                if part.affine:
                    nn.init.normal_(part.weight)
                    nn.init.normal_(part.bias)
    return made.eval()


class Residual(nn.Module):
    """Convolutions with batch norms, a shortcut, a depthwise one, a linear layer with one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn1 = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.hidden = nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.relu6(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(y)) + x)
        return self.head(self.hidden(x.mean((2, 3))))


def pictures(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def test_batch_norms_fold_exactly() -> None:
    made, other = seeded(Residual), seeded(Residual)
    x = torch.from_numpy(pictures(16))
    before = made(x).detach()
    folds, left = find_folds(made, (x[:1],))
    assert folds == {"stem.0": "stem.1", "conv1": "bn1", "conv2": "bn2", "hidden.0": "hidden.1"}
    assert left == {}
    fold(made, folds, (x[:1],))
    assert not any(isinstance(p, nn.modules.batchnorm._BatchNorm) for p in made.modules())
    with torch.no_grad():
        change = (made(x) - before).abs().max()
    assert float(change) <= 1e-5 * float(before.abs().max())
    # What a recipe gives is the same structure.
    fold_structure(other, folds)
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (made, other)]
    assert shapes[0] == shapes[1]
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))


class Bound(nn.Module):
    """Batch norms that have to stay, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.seen = nn.BatchNorm2d(3)
        self.twice = nn.Conv2d(3, 3, 1)
        self.again = nn.BatchNorm2d(3)
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.two.weight = self.one.weight
        self.shared = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)
        self.loose = nn.BatchNorm2d(3, track_running_stats=False)
        self.unused = nn.BatchNorm2d(3)
        self.tokens = nn.Linear(3, 4)
        self.rows = nn.BatchNorm1d(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.first(x))
        x = self.seen(y) + y
        x = self.again(self.twice(x))
        x = self.again(self.twice(x))
        x = self.two(self.shared(self.one(x)))
        x = self.loose(self.last(x))
        return self.rows(self.tokens(x.flatten(2).transpose(1, 2)))


def test_what_cannot_be_folded_stays_with_its_reason() -> None:
    made = seeded(Bound)
    folds, left = find_folds(made, (torch.from_numpy(pictures(2)),))
    assert folds == {}
    assert {name: reason.split(" ")[0] for name, reason in left.items()} == {
        "first": "no", "seen": "it", "again": "it", "shared": "its", "loose": "it",
        "unused": "no", "rows": "its",
    }  # fmt: skip
    assert "called more than once" in left["again"]
    assert "not the only reader" in left["seen"]
    assert "several owners" in left["shared"]
    assert "no statistics" in left["loose"]


class Sly(nn.Module):
    """Reads a layer's weights past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.sum()


def test_a_fold_that_changes_the_answers_is_refused() -> None:
    made = seeded(Sly)
    example = (torch.from_numpy(pictures(1)),)
    folds, _ = find_folds(made, example)
    with pytest.raises(ChainError, match="batch norms are folded") as caught:
        fold(made, folds, example)
    assert caught.value.code == "distill-fold"


# What is quantized


def test_pairs_stand_where_quantize_puts_them() -> None:
    made = seeded(Residual)
    example = (torch.from_numpy(pictures(1)),)
    folds, _ = find_folds(made, example)
    fold(made, folds, example)
    sites = find_sites(made, example, "static")
    assert set(sites.layers) == {"stem.0", "conv1", "conv2", "hidden.0", "head"}
    # Behind the others a clamp takes the quantization, or nothing integer reads them.
    assert sites.outputs == ("conv2",)
    assert find_sites(made, example, "weights").outputs == ()
    dynamic = find_sites(made, example, "dynamic")
    assert dynamic.layers == ("hidden.0", "head")
    assert "convolution" in dynamic.skipped["conv1"]


def test_volumes_train_as_quantize_will_run_them() -> None:
    made = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    example = (torch.zeros(1, 1, 4, 4, 4),)
    options = QuantizeOptions()
    assert find_sites(made, example, options.mode, options.conv3d).layers == ("2",)
    assert find_sites(made, example, options.mode, "static").layers == ("0", "2")


def test_layers_that_cannot_be_quantized_are_left() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight * 2, self.bias)

    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.normed, self.own = attention, normed, Own(6, 6)
            self.plain = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.attention(x[:, None], x[:, None], x[:, None])
            return self.plain(self.own(self.normed(y[:, 0])))

    sites = find_sites(Odd().eval(), (torch.from_numpy(drawn(2)),), "static")
    assert sites.layers == ("plain",)
    assert set(sites.skipped) == {"attention.out_proj", "normed", "own"}
    assert "computed from others" in sites.skipped["normed"]


def attached(made: nn.Module, x: np.ndarray, options: QuantizeOptions = NEAREST) -> Attached:
    example = (torch.from_numpy(x[:1]),)
    sites = find_sites(made, example, options.mode)
    return Attached(
        made, sites, options, lambda: [(torch.from_numpy(x[i : i + 32]),) for i in (0, 32)]
    )


def test_the_network_is_as_it_was_once_it_is_closed() -> None:
    made, other = network(), network()
    x = torch.from_numpy(drawn(64))
    before = made(x)
    held = attached(made, x.numpy())
    names = [name for name, _ in made.named_parameters()]
    inside = made(x)
    assert not torch.equal(inside, before)
    change, size = (inside - before).detach().abs().max(), before.detach().abs().max()
    assert float(change) < 0.1 * float(size)
    assert names == [name for name, _ in other.named_parameters()]
    held.close()
    assert same(made, other)
    assert torch.equal(made(x), before)
    assert [n for n, _ in made.named_modules()] == [n for n, _ in other.named_modules()]
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in made.modules())


def test_a_call_that_fails_leaves_the_weights() -> None:
    made, x = network(), drawn(64)
    held = attached(made, x)
    with pytest.raises(RuntimeError):
        made[0](torch.zeros(2, 5))
    assert isinstance(made[0].weight, nn.Parameter)
    held.close()


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_it_computes_what_the_quantized_graph_computes(mode: str) -> None:
    """The network that trains lies nearer to what onnxruntime will run than to itself in float."""
    bits = {"bits": 4, "block": 16} if mode == "weights" else {"range": "full"}
    options = QuantizeOptions(mode=mode, rounding="nearest", bias_correction=False, **bits)
    made, x = network(wide=64), drawn(256)
    inputs = (Tensor("x", "float32", ("batch", 6)),)
    graph = simplify(export_module(made, inputs, {"x": x[:1]}, 18, ("y",)).model, {"x": x[:1]})
    result = quantize(graph.model, Arrays(x=x[:64]), options, SilentProgress())
    session = onnxruntime.InferenceSession(
        result.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    device = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    held = attached(made, x, options)
    with torch.no_grad():
        inside = made(torch.from_numpy(x)).numpy()
    held.close()
    with torch.no_grad():
        real = made(torch.from_numpy(x)).numpy()
    assert np.square(inside - device).sum() < 0.25 * np.square(real - device).sum()


# The pass


def run_pass(folder: Path, made: nn.Module, options: DistillOptions = AWARE, **more: Any) -> Any:
    given = context(
        folder, seeded(Residual), {"image": pictures(128)}, inputs=IMAGE, outputs=SCORES
    )
    given = replace(given, later={"quantize": more.get("quantize", NEAREST)})
    return distill(made, options, given), given


def test_the_recipe_gives_the_structure_again(tmp_path: Path) -> None:
    result, given = run_pass(tmp_path, seeded(Residual))
    assert len(result.recipe["folded"]) == 4
    assert result.details["aware"] == {"layers": 5, "outputs": 1, "folded": 4, "left": {}}
    replayed = replay(seeded(Residual), result.recipe, given)
    replayed.load_state_dict(result.model.state_dict(), strict=True)
    x = torch.from_numpy(pictures(8, seed=5))
    assert torch.equal(replayed(x), result.model(x))
    # Nothing of the training is left in the network.
    assert not any("aware" in name for name, _ in result.model.named_modules())
    assert not any("rounding=nearest" in note for note in result.notes)


def test_the_same_bits_each_time(tmp_path: Path) -> None:
    one, _ = run_pass(tmp_path / "one", seeded(Residual))
    other, _ = run_pass(tmp_path / "other", seeded(Residual))
    assert same(one.model, other.model)


class Killed(BaseException):
    """Nothing that the loop would catch."""


def test_a_killed_training_goes_on_with_the_same_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run_pass(tmp_path / "whole", seeded(Residual))
    saved = Loop._save

    def save_and_die(self: Loop, at: Any) -> None:
        saved(self, at)
        raise Killed

    monkeypatch.setattr(Loop, "_save", save_and_die)
    with pytest.raises(Killed):
        run_pass(tmp_path / "killed", seeded(Residual))
    monkeypatch.undo()
    [kept] = (tmp_path / "killed" / "work").rglob("checkpoint.safetensors")
    with safe_open(kept, "pt") as stored:
        assert "module/stem.0.aware_input.seen" in stored.keys()  # noqa: SIM118
    resumed, _ = run_pass(tmp_path / "killed", seeded(Residual))
    assert resumed.details["resumed_at"] > 0
    assert same(resumed.model, whole.model)


def test_it_learns_what_rounding_took(tmp_path: Path) -> None:
    """With four bits for every weight, training brings half of the answers back."""
    options = QuantizeOptions(mode="weights", bits=4, block=16)
    teacher, x = network(wide=64), drawn(2048)

    def error(made: nn.Module) -> float:
        held = attached(made, x, options)
        with torch.no_grad():
            found = made(torch.from_numpy(drawn(500, seed=9)))
            wanted = teacher(torch.from_numpy(drawn(500, seed=9)))
        held.close()
        return float((found - wanted).square().sum())

    given = replace(context(tmp_path, teacher, {"x": x}), later={"quantize": options})
    result = distill(network(wide=64), replace(AWARE, epochs=8, lr=3e-3), given)
    assert error(result.model) < 0.6 * error(network(wide=64))


@pytest.mark.parametrize("scheme", ["qnnpack", "tensorrt"])
def test_every_scheme_can_be_trained_for(tmp_path: Path, scheme: str) -> None:
    options = QuantizeOptions(scheme=scheme, range="full", calibrator="minmax")
    result, _ = run_pass(tmp_path, seeded(Residual), quantize=options)
    assert scheme in next(
        note for note in result.notes if note.startswith("Trained in the arithmetic")
    )
    assert all(torch.isfinite(t).all() for t in result.model.state_dict().values())


def test_gptq_after_it_is_advised_against(tmp_path: Path) -> None:
    result, _ = run_pass(tmp_path, seeded(Residual), quantize=QuantizeOptions())
    assert "quantize:rounding=nearest:bias_correction=false" in result.notes[-1]


def test_half_precision_is_not_what_it_trains_in(tmp_path: Path) -> None:
    result, _ = run_pass(tmp_path, seeded(Residual))
    assert result.details["precision"] == "fp32"


def test_a_batch_norm_that_stays_is_told_of(tmp_path: Path) -> None:
    made = seeded(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)))
    given = replace(context(tmp_path, network(), {"x": drawn(64)}), later={"quantize": NEAREST})
    result = distill(made, replace(AWARE, epochs=1), given)
    assert any(note.startswith("Batch norm not folded: 0: no conv") for note in result.notes)


# The chain


def test_its_learning_rate_is_small_unless_given() -> None:
    assert DistillOptions(aware=True).peak == 1e-4
    assert DistillOptions(aware=True, lr=3e-3).peak == 3e-3
    assert DistillOptions().peak == 2e-3


def test_it_depends_on_the_quantization_that_follows() -> None:
    assert "quantize" in DistillOptions(aware=True).needs
    assert "quantize" not in DistillOptions().needs


@pytest.mark.parametrize(
    "text",
    ["distill:aware=true,quantize", "prune:structured=0.5,distill,distill:aware=true,quantize",
     "distill:aware=true,distill:aware=true:seed=1,quantize"],
)  # fmt: skip
def test_chains_that_make_sense(text: str) -> None:
    passes.check_chain(passes.parse_chain(text))
