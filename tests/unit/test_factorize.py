"""Low rank: every form is exact at full rank, the best there is at less, and replays."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.passes.factorize import FactorizeOptions, factorize, replay
from edgepack.passes.factorize.layers import find_layers
from edgepack.passes.factorize.moments import Moments, observe
from edgepack.passes.factorize.ranks import Choice, choose_by_budget, choose_by_loss
from edgepack.passes.factorize.spectrum import compute_spectrum
from edgepack.passes.factorize.split import fill, split
from support.module_nets import (
    Dense,
    Residual,
    ask,
    given,
    mlp,
    mobile,
    pictures,
    replayed,
    seeded,
    snr,
    tiny_bert,
)
from support.training_cases import same

LAYERS = {
    "linear": (lambda: nn.Linear(10, 6), (4, 10)),
    "wide linear": (lambda: nn.Linear(6, 10, bias=False), (4, 3, 6)),
    "1x1": (lambda: nn.Conv2d(10, 6, 1, stride=2), (2, 10, 7, 7)),
    "3x3": (
        lambda: nn.Conv2d(4, 6, 3, 2, 1, dilation=2, padding_mode="circular"), (2, 4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", bias=False), (2, 4, 9, 8)),
    "1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 2, 4, 4, 4)),
}  # fmt: skip


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(6, 10)


def correlated(shape: tuple[int, ...]) -> torch.Tensor:
    """Inputs of a mean and with few directions, as activations are."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, *shape[1:], generator=generator)
    return x.cumsum(1) + 2


@pytest.mark.parametrize("method", ["svd", "activation"])
@pytest.mark.parametrize("kind", [*LAYERS, "Conv1D"])
def test_every_kind_of_layer(kind: str, method: str) -> None:
    make, shape = LAYERS.get(kind, (conv1d, (4, 10)))
    network = seeded(lambda: nn.Sequential(make()))
    with torch.no_grad():
        if network[0].bias is not None:
            network[0].bias.normal_(generator=torch.Generator().manual_seed(0))
    x = correlated(shape)
    (layer,), left = find_layers(network, [x])
    assert not left
    moments = Moments(of_inputs=kind == "wide linear")
    with torch.no_grad():
        y = network(x)
        values = x if moments.of_inputs else y
        if "linear" not in kind and kind != "Conv1D":
            values = values.movedim(1, -1)
        moments.add(values.reshape(-1, values.shape[-1]))
    for measured in (None, moments):
        if measured is None and method == "activation":
            continue
        found = compute_spectrum(layer, measured, method)
        lost = found.losses()
        errors = []
        for rank in range(1, len(found.energy) + 1):
            pair = split(layer.module, rank, bias=measured is not None)
            fill(pair, layer, found)
            with torch.no_grad():
                again = pair(x)
            assert again.shape == y.shape
            axes = (0, *range(2, y.ndim)) if "linear" not in kind else tuple(range(y.ndim - 1))
            error = (y - again).double()
            variance = (y.double() - y.double().mean(axes, keepdim=True)).square().sum()
            errors.append(float(error.square().sum() / variance))
            if measured is not None and rank < len(found.energy):
                assert errors[-1] == pytest.approx(lost[rank], rel=1e-3)
                assert error.mean(axes).abs().max() < 1e-4, "the mean is kept"
        assert errors[-1] < 1e-10, "full rank is exact"


@pytest.mark.parametrize("name", ["linear", "wide linear", "3x3"])
def test_the_outputs_own_directions_are_the_best(name: str) -> None:
    """No other layer of the same rank comes nearer on those samples, SVD's among them."""
    make, shape = LAYERS[name]
    network, x = seeded(lambda: nn.Sequential(make())), correlated(shape)
    (layer,), _ = find_layers(network, [x])
    moments = Moments(of_inputs=name == "wide linear")
    with torch.no_grad():
        y = network(x)
    values = x if moments.of_inputs else y.movedim(1, -1) if name == "3x3" else y
    moments.add(values.reshape(-1, values.shape[-1]))
    best, plain = (compute_spectrum(layer, moments, m).losses() for m in ("activation", "svd"))
    flat = (y.movedim(1, -1) if name == "3x3" else y).reshape(-1, layer.outputs).double()
    exact = torch.linalg.svdvals(flat - flat.mean(0)).square().numpy()
    for rank in range(1, min(len(best) - 1, len(exact))):
        assert best[rank] == pytest.approx(exact[rank:].sum() / exact.sum(), rel=1e-4, abs=1e-9)
        assert best[rank] <= plain[rank] + 1e-9
    assert sum(best) < 0.99 * sum(plain)


def test_moments_are_those_of_all_samples(tmp_path: Path) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    layers, _ = find_layers(network, [torch.from_numpy(pictures(1))])
    found = observe(network, layers, data, batch_size=7)
    outputs = {}
    network.three.register_forward_hook(lambda _m, _i, y: outputs.update(three=y))
    ask(network, pictures())
    y = outputs["three"].movedim(1, -1).reshape(-1, 64).double()
    assert found["three"].count == len(y)
    assert torch.allclose(found["three"].mean, y.mean(0), atol=1e-6)
    assert torch.allclose(found["three"].covariance, y.t().cov(correction=0), atol=1e-6)
    # The hooks are gone.
    assert not network.one._forward_hooks


NETS = {
    "residual": Residual,
    "dense": Dense,
    "depthwise": mobile,
    "grouped": lambda: mobile(groups=4),
    "mlp": mlp,
}


@pytest.mark.parametrize("options", [{}, {"energy": 0.9, "round_to": 1}, {"snr_db": 8},
                                     {"method": "svd", "parameters": 0.6}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", NETS)
def test_whole_networks(name: str, options: dict[str, object], tmp_path: Path) -> None:
    original = seeded(NETS[name])
    before = copy.deepcopy(original)
    data = given(tmp_path, original)
    state = torch.random.get_rng_state()
    asked = FactorizeOptions(**options)  # type: ignore[arg-type]
    found = factorize(copy.deepcopy(original), asked, data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(original, before)
    again = replayed(replay, copy.deepcopy(original), found, data)
    x = pictures(20, seed=5)
    assert ask(again, x).shape == (20, 5)
    assert torch.equal(ask(again, x), ask(found.model, x))
    assert same(factorize(copy.deepcopy(original), asked, data).model, found.model)
    if not found.changed:
        assert found.notes
        assert found.recipe["ranks"] == {}
        return
    was, now = found.details["touched_parameters"]
    counts = [sum(p.numel() for p in net.parameters()) for net in (original, found.model)]
    assert counts[0] - counts[1] == was - now > 0
    for layer in found.details["layers"].values():
        assert layer["parameters"][1] < layer["parameters"][0]
        assert layer["macs"][1] < layer["macs"][0]
        if asked.snr_db:
            assert layer["snr_db"] >= asked.snr_db
        if asked.energy:
            assert layer["lost"] <= 0.1
        assert layer["rank"] % asked.round_to == 0
    assert found.details["macs"][1] < found.details["macs"][0]
    said = any("not factorized: " in note for note in found.notes)
    assert said == bool(found.details["left"])


def test_a_budget_is_met_and_not_overdone(tmp_path: Path) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    for share in (0.8, 0.5, 0.3):
        options = FactorizeOptions(parameters=share, round_to=1)
        found = factorize(copy.deepcopy(network), options, data)
        # Of the parameters of all layers that a rank could make smaller: not the stem's.
        layers = (network.one, network.two, network.three, network.shortcut, network.head)
        total = sum(p.numel() for layer in layers for p in layer.parameters())
        was, now = found.details["touched_parameters"]
        kept = (total - was + now) / total
        assert share - 0.02 < kept <= share


def test_activation_keeps_more_of_the_answer_than_svd(tmp_path: Path) -> None:
    network = seeded(lambda: mlp(64))
    data = given(tmp_path, network, x=pictures(200))
    x = pictures(100, seed=7)
    reference = ask(network, x)
    found = {
        method: snr(
            reference,
            ask(
                factorize(
                    copy.deepcopy(network), FactorizeOptions(method=method, parameters=0.7), data
                ).model,
                x,
            ),
        )
        for method in ("activation", "svd")
    }
    assert found["activation"] > found["svd"] + 3


def test_without_measurement_no_samples_are_needed(tmp_path: Path) -> None:
    network = seeded(mlp)
    data = replace(given(tmp_path, network), calibration=None)
    options = FactorizeOptions(method="svd", parameters=0.5)
    assert options.needs == ()
    assert factorize(network, options, data).changed
    assert FactorizeOptions().needs == ("calibration",)
    assert FactorizeOptions(method="svd", snr_db=20).needs == ("calibration",)


def test_a_bert(tmp_path: Path) -> None:
    network, data = tiny_bert(tmp_path)
    options = FactorizeOptions(parameters=0.6, exclude=("*classifier", "*pooler*"))
    found = factorize(copy.deepcopy(network), options, data)
    assert found.changed
    assert "inner.classifier" not in found.recipe["ranks"]
    again = replayed(replay, copy.deepcopy(network), found, data)
    ids = np.random.default_rng(4).integers(0, 60, (3, 11))
    assert torch.equal(ask(again, ids), ask(found.model, ids))
    assert ask(again, ids).shape == (3, 5)


class Named(nn.Linear):
    """A Linear under another name."""


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Odd(nn.Module):
    """Layers that cannot be taken apart, one of each reason."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(64, 64)
        self.twice = nn.Linear(64, 64)
        self.again = self.twice
        self.tied, self.tied2 = nn.Linear(64, 64), nn.Linear(64, 64)
        self.tied2.weight = self.tied.weight
        self.hooked = nn.Linear(64, 64)
        self.hooked.register_forward_hook(lambda _m, _i, y: y * 2)
        self.unused = nn.Linear(64, 64)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
        self.groups = nn.Conv2d(8, 8, 3, groups=2)
        self.turned = nn.ConvTranspose2d(8, 8, 3)
        self.small = nn.Linear(64, 3)
        self.named, self.scaled = Named(64, 64), Scaled(64, 64)
        self.good = nn.Linear(64, 64)
        self.encoder = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)[:, :64]
        x = torch.nn.functional.linear(x, self.read.weight)
        for part in (self.twice, self.again, self.tied, self.tied2, self.hooked, self.normed,
                     self.named, self.scaled):  # fmt: skip
            x = part(x)
        picture = self.turned(self.groups(x.reshape(-1, 8, 4, 2).repeat(1, 1, 2, 2)))
        return self.small(
            self.encoder(self.good(x)[:, None])[:, 0] + picture.mean((1, 2, 3))[:, None]
        )


def test_what_cannot_be_factorized_is_left_with_the_reason(tmp_path: Path) -> None:
    network = seeded(Odd)
    found = factorize(copy.deepcopy(network), FactorizeOptions(), given(tmp_path, network))
    assert set(found.recipe["ranks"]) == {"good", "named"}
    left = found.details["left"]
    for name, words in {
        "read": "uses more of it than its output",
        "twice": "several names",
        "tied": "shares its weights",
        "tied2": "shares its weights",
        "hooked": "hook",
        "unused": "does not call it by its name",
        "normed": "computed from others",
        "scaled": "a Scaled computes more than a Linear",
        "groups": "its groups",
        "turned": "transposed",
        "small": "no rank that is a multiple of 8",
        "encoder.linear1": "uses more of it",
        "encoder.self_attn.out_proj": "",
    }.items():
        assert words in left[name], (name, left.get(name))
    assert ask(found.model, pictures(3)).shape == (3, 3)


def test_include_and_exclude(tmp_path: Path) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    options = FactorizeOptions(include=("one", "t*"), exclude=("two",), parameters=0.4)
    found = factorize(copy.deepcopy(network), options, data)
    assert set(found.recipe["ranks"]) == {"one", "three"}
    assert found.details["left"]["two"] == "the options exclude it"
    assert FactorizeOptions(include="a, b").include == ("a", "b")  # type: ignore[arg-type]


def test_a_layer_that_never_changes_costs_nothing(tmp_path: Path) -> None:
    network = seeded(mlp)
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.fill_(1)
    found = factorize(
        copy.deepcopy(network), FactorizeOptions(energy=0.999), given(tmp_path, network)
    )
    assert found.details["layers"]["1"]["rank"] == 8
    assert torch.allclose(ask(found.model, pictures()), ask(network, pictures()), atol=1e-5)


# Ranks


def choice(name: str, *lost: float) -> Choice:
    ranks = tuple(range(1, len(lost) + 1))
    return Choice(name, 100, ranks, tuple(10 * rank for rank in ranks), lost)


def test_by_loss() -> None:
    assert choose_by_loss(choice("a", 0.5, 0.1, 0.01), 0.1) == 2
    assert choose_by_loss(choice("a", 0.5, 0.1, 0.01), 0.001) is None


def test_by_budget_takes_from_where_it_costs_least() -> None:
    cheap, dear = choice("cheap", 0.02, 0.01, 0.005), choice("dear", 0.9, 0.8, 0.7)
    assert choose_by_budget([cheap, dear], 0.6) == {"cheap": 2}
    assert choose_by_budget([cheap, dear], 0.55) == {"cheap": 1}
    assert choose_by_budget([cheap, dear], 0.15) == {"cheap": 1, "dear": 2}


def test_by_budget_is_the_best_of_all() -> None:
    """Against every combination: on the hull nothing loses less, at a budget hardly anything."""
    generator = np.random.default_rng(0)
    choices = []
    for name in "abc":
        energy = np.sort(generator.exponential(size=8))[::-1]
        lost = 1 - np.cumsum(energy) / energy.sum()
        choices.append(choice(name, *lost[:7]))
    table = [((x.parameters, 0.0), *zip(x.sizes, x.lost, strict=True)) for x in choices]
    every = [
        (sum(p[0] for p in points), sum(p[1] for p in points))
        for points in ((a, b, c) for a in table[0] for b in table[1] for c in table[2])
    ]
    for share in (0.2, 0.4, 0.5, 0.7):
        ranks = choose_by_budget(choices, share)
        found = sum(x.lost[ranks[x.name] - 1] for x in choices if x.name in ranks)
        size = sum(10 * ranks[x.name] if x.name in ranks else 100 for x in choices)
        assert size <= share * 300
        best = min(lost for used, lost in every if used <= share * 300)
        assert best <= found <= best + 0.1


def test_its_place_in_a_chain() -> None:
    passes.check_chain(passes.parse_chain("factorize:energy=0.9,distill,quantize"))
    with pytest.raises(ChainError) as caught:
        passes.check_chain(passes.parse_chain("factorize,distill,factorize"))
    assert caught.value.code == "chain-conflict"
    with pytest.raises(ChainError) as caught:
        passes.check_chain(passes.parse_chain("quantize,factorize"))
    assert caught.value.code == "chain-order"


class ByKind(nn.Module):
    """What stands between two layers depends on their kind; a table is kept for the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Flatten(), nn.Linear(432, 64), nn.Linear(64, 64)])
        self.last = nn.Linear(64, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                x = torch.tanh(x)
        return self.head(torch.relu(self.last(x)))


def test_a_layer_whose_kind_decides_is_left(tmp_path: Path) -> None:
    network = seeded(ByKind)
    layers, left = find_layers(network, [torch.from_numpy(pictures(1))])
    assert [layer.name for layer in layers] == ["last", "head"]
    assert "kind of module" in left["layers.1"]
    assert "kind of module" in left["layers.2"]


class Table(nn.Module):
    """A table that grows to the longest batch that was seen, as tables of positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(432, 64), nn.Linear(64, 64), nn.Linear(64, 5)
        self.table = torch.zeros(0, 1)

    def forward(self, x: Any) -> Any:
        if len(self.table) < len(x):
            self.table = torch.ones(len(x), 1)
        x = torch.relu(self.one(x.flatten(1))) * self.table[: len(x)]
        return self.head(torch.relu(self.two(x)))


def test_what_a_network_keeps_of_a_call_takes_a_gradient(tmp_path: Path) -> None:
    network = seeded(Table)
    found = factorize(network, FactorizeOptions(parameters=0.6), given(tmp_path, network))
    assert found.changed
