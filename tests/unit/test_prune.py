"""Channels and heads that go: every kind of network, its answer, its budget, its replay."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.passes.module import ModuleContext, ModuleResult
from edgepack.passes.network import count_macs
from edgepack.passes.prune import PruneOptions, prune, replay
from edgepack.passes.prune.channel_groups import find_groups
from edgepack.passes.prune.cut import Cut, CutError, cut, is_channelwise, to_group_indices
from edgepack.passes.prune.cut_check import Trial
from edgepack.passes.prune.importance import compute_costs, score_by_taylor, score_by_weights
from edgepack.passes.prune.search import Ranking, copy_without, find_smallest_step
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


class Squeeze(nn.Module):
    """Squeeze and excite, a transposed convolution, a scale of every channel, two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.InstanceNorm2d(32, affine=True)
        self.squeeze, self.excite = nn.Linear(32, 16), nn.Linear(16, 32)
        self.scale = nn.Parameter(torch.rand(32, 1, 1) + 0.5)
        self.up = nn.ConvTranspose2d(32, 24, 2, stride=2)
        self.last = nn.Conv2d(24, 5, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.norm(self.one(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = x * gate[:, :, None, None] * self.scale
        return self.head(x.mean((2, 3))), self.last(F.gelu(self.up(x))).mean((2, 3))


class Attention(nn.Module):
    """Four heads that the module counts for itself; a residual stream without a norm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.num_heads, self.embed_dim = 4, width
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        shape = (*x.shape[:2], self.num_heads, self.embed_dim // self.num_heads)
        q, k, v = (f(x).reshape(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], self.embed_dim))
        return self.head(x.mean(1))


NETS = {
    "residual": Residual,
    "dense": Dense,
    "depthwise": mobile,
    "grouped": lambda: mobile(32, groups=4),
    "mlp": mlp,
    "squeeze": Squeeze,
}
OPTIONS = [
    {"structured": 0.4},
    {"structured": 0.4, "of": "macs", "importance": "l1", "round_to": 1},
    {"structured": 0.3, "per_layer": True, "round_to": 4},
    {"structured": 0.4, "importance": "taylor", "samples": 20},
]


def checked(
    original: nn.Module, options: PruneOptions, data: ModuleContext, x: Any
) -> ModuleResult:
    """Prune, and hold every promise that does not depend on the network."""
    before = copy.deepcopy(original)
    state = torch.random.get_rng_state()
    found = prune(copy.deepcopy(original), options, data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(original, before)
    again = replayed(replay, copy.deepcopy(original), found, data)
    assert ask(again, x).shape == ask(original, x).shape
    assert torch.equal(ask(again, x), ask(found.model, x))
    second = prune(copy.deepcopy(original), options, data)
    assert same(second.model, found.model)
    assert second.recipe == found.recipe
    figures = found.details["structured"]
    counts = [sum(p.numel() for p in net.parameters()) for net in (original, found.model)]
    assert figures["parameters"] == counts
    whole, after = figures[options.of]
    assert after <= (1 - options.structured) * whole
    for name, (was, now) in figures["layers"].items():
        layer = found.model.get_submodule(name)
        assert now == len(layer.weight) or isinstance(layer, nn.ConvTranspose2d)
        assert 0 < now < was
    assert all(p.requires_grad for p in found.model.parameters())
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_whole_networks(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    original = seeded(NETS[name])
    asked = PruneOptions(**options)
    found = checked(original, asked, given(tmp_path, original), pictures(6, seed=5))
    for _, now in found.details["structured"]["layers"].values():
        assert now % asked.round_to == 0
    assert not found.model.training


@pytest.mark.parametrize("name", NETS)
def test_channels_that_nobody_reads_go_first_and_are_not_missed(name: str, tmp_path: Path) -> None:
    """Half of the channels of every group are made useless: the answer stays the same without."""
    original = seeded(NETS[name])
    example = [torch.from_numpy(pictures(1))]
    groups = find_groups(original, example).groups
    assert groups
    with torch.no_grad():
        for group in groups:
            half = group.cut(range(0, len(group.units), 2))
            for part in group.slices:
                if part.side == "parameter" or is_channelwise(original.get_submodule(part.name)):
                    continue
                layer = original.get_submodule(part.name)
                inputs = part.side == "inputs"
                gone = (half.inputs if inputs else half.outputs).get(part.name, set())
                if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    gone = (
                        to_group_indices(layer, gone)
                        if inputs and hasattr(layer, "groups")
                        else gone
                    )
                    axis = inputs != isinstance(layer, nn.ConvTranspose2d)
                    layer.weight.index_copy_(
                        int(axis), torch.tensor(sorted(gone)),
                        layer.weight.index_select(int(axis), torch.tensor(sorted(gone))) * 1e-9,
                    )  # fmt: skip
    data = given(tmp_path, original)
    x = pictures(6, seed=5)
    for importance in ("l1", "l2", "taylor"):
        options = PruneOptions(structured=0.2, round_to=1, importance=importance, samples=20)
        found = prune(copy.deepcopy(original), options, data)
        assert snr(ask(original, x), ask(found.model, x)) > 60, importance


def test_a_bert_loses_heads(tmp_path: Path) -> None:
    network, data = tiny_bert(tmp_path)
    ids = np.random.default_rng(4).integers(0, 60, (3, 11))
    options = PruneOptions(structured=0.2)
    found = checked(network, options, data, ids)
    figures = found.details["structured"]
    assert set(figures["heads"]) <= {f"inner.bert.encoder.layer.{i}.attention.self" for i in (0, 1)}
    assert any("attention heads in" in note for note in found.notes)
    for place, (was, now) in figures["heads"].items():
        assert was == 4
        attention = found.model.get_submodule(place)
        for name in ("query", "key", "value"):
            assert getattr(attention, name).out_features == 8 * now
    left = figures["left"]
    assert "LayerNorm" in left["inner.bert.encoder.layer.0.output.dense"]
    assert "output" in left["inner.classifier"]


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_the_head_that_says_nothing_goes(tmp_path: Path, importance: str) -> None:
    network = seeded(Attention)
    with torch.no_grad():
        network.out.weight[:, 8:16] = 0
        for part in (network.query, network.key, network.value):
            part.weight[8:16] *= 0.01
            part.bias[8:16] = 0
    options = PruneOptions(structured=0.1, importance=importance, include=("query", "key", "value"))
    data = given(tmp_path, network)
    found = checked(network, options, data, pictures(3))
    assert found.recipe["outputs"]["value"] == list(range(8, 16))
    assert found.recipe["attributes"] == {"": {"num_heads": 3, "embed_dim": 24}}
    assert found.model.num_heads == 3
    assert snr(ask(network, pictures(3)), ask(found.model, pictures(3))) > 100


def test_budgets_are_met_and_not_overdone(tmp_path: Path) -> None:
    network = seeded(Residual)
    data = given(tmp_path, network)
    for of in ("parameters", "macs"):
        for share in (0.2, 0.5, 0.8):
            options = PruneOptions(structured=share, of=of, round_to=1)
            was, now = prune(copy.deepcopy(network), options, data).details["structured"][of]
            assert share <= 1 - now / was < share + 0.05


def test_per_layer_takes_the_same_share_everywhere(tmp_path: Path) -> None:
    network = seeded(Residual)
    options = PruneOptions(structured=0.5, per_layer=True, round_to=1)
    found = prune(copy.deepcopy(network), options, given(tmp_path, network))
    shares = {now / was for was, now in found.details["structured"]["layers"].values()}
    assert max(shares) - min(shares) < 0.05


class Odd(nn.Module):
    """Channels that cannot go, one of each reason, beside some that can."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.reader = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3)
        self.normed, self.group_norm = nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16)
        self.soft, self.shuffled = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.fixed = nn.Conv2d(16, 16, 1)
        self.tied = nn.Linear(16, 16)
        self.tied2 = nn.Linear(16, 16)
        self.tied2.weight = self.tied.weight
        self.weighed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        x = self.reader(F.relu(self.good(x)))
        x = self.group_norm(self.normed(x))
        x = self.shuffled(self.soft(x).softmax(1))
        x = x.reshape(len(x), 4, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = self.fixed(x).mean((2, 3)).reshape(-1, 16)
        x = F.relu(self.tied2(F.relu(self.tied(x))))
        return self.head(F.relu(self.twice(F.relu(self.twice(self.weighed(x))))))


def test_what_cannot_go_stays_with_the_reason(tmp_path: Path) -> None:
    network = seeded(Odd)
    found = checked(network, PruneOptions(structured=0.2), given(tmp_path, network), pictures(3))
    assert "good" in found.details["structured"]["layers"]
    left = found.details["structured"]["left"]
    for name, words in {
        "normed": "GroupNorm normalizes over all",
        "soft": "also read by parts",
        "tied": "share",
        "tied2": "share",
        "weighed": "computed from others",
        "head": "output",
    }.items():
        assert words in left[name], (name, left.get(name))
    for name in ("shuffled", "twice"):
        assert name in left
        assert name not in found.details["structured"]["layers"]
    assert any(note.startswith("channels not pruned: ") for note in found.notes)


def test_a_proposal_that_is_wrong_is_found_out() -> None:
    """The trial is no formality: it refuses channels that are read elsewhere."""
    network = seeded(Residual)
    trial = Trial(network, [torch.from_numpy(pictures(1))])
    good = find_groups(network, trial.example).groups
    cuts = {group.root: group.cut([0, 3]) for group in good}
    assert all(trial.reject(what) == "" for what in cuts.values())
    other = copy.deepcopy(cuts["one"])
    other.inputs["two"] = {1, 3}
    assert "also read by parts" in trial.reject(other)
    lacking = copy.deepcopy(cuts["one"])
    del lacking.outputs["bn1"]
    assert "fails with fewer" in trial.reject(lacking)
    # A dead layer does not hide it.
    with torch.no_grad():
        network.two.weight.zero_()
    assert Trial(network, trial.example).reject(other)


def test_include_and_exclude(tmp_path: Path) -> None:
    network = seeded(Residual)
    options = PruneOptions(structured=0.1, include=("one", "three", "shortcut"), exclude=("th*",))
    found = prune(copy.deepcopy(network), options, given(tmp_path, network))
    assert set(found.details["structured"]["layers"]) == {"one"}
    assert "excluded by the options" in found.details["structured"]["left"]["shortcut"]


# Importance


def test_l1_and_l2_by_hand() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
        network[1].weight.copy_(torch.tensor([[1.0, -2.0]]))
    (group,) = find_groups(network, [torch.ones(1, 2)]).groups
    (l1,) = score_by_weights(network, [group], 1)
    assert l1.tolist() == pytest.approx([(4 / 3 + 1 / 1.5) / 2, (2 / 3 + 2 / 1.5) / 2])
    (l2,) = score_by_weights(network, [group], 2)
    assert l2.tolist() == pytest.approx([(10 / 6 + 1 / 2.5) / 2, (2 / 6 + 4 / 2.5) / 2])


def test_taylor_without_labels_is_the_change_of_the_answer(tmp_path: Path) -> None:
    """For a linear reader the expected square is exact: |activation|^2 |column|^2."""
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 6), nn.Linear(6, 5)))
    x = pictures(2000)
    data = given(tmp_path, network, x=x)
    groups = find_groups(network, [torch.from_numpy(x[:1])]).groups
    options = PruneOptions(importance="taylor", samples=2000, batch_size=1)
    (found,), by = score_by_taylor(network, groups, options, data)
    assert by == "the answers to training samples"
    with torch.no_grad():
        hidden, answer = network[:2](torch.from_numpy(x)), network(torch.from_numpy(x))
    spread = answer.var(1, correction=0)
    expected = (hidden.square() / spread[:, None]).mean(0) * network[2].weight.square().sum(0)
    assert np.allclose(found.numpy(), expected.detach().numpy(), rtol=0.2)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_taylor_with_labels_is_the_gradient_of_the_loss(tmp_path: Path) -> None:
    network = seeded(mlp)
    x, labels = pictures(12), np.arange(12) % 5
    labels[3] = -1
    data = given(tmp_path, network, x=x, labels=labels)
    groups = find_groups(network, [torch.from_numpy(x[:1])]).groups
    options = PruneOptions(importance="taylor", samples=12, batch_size=12)
    found, by = score_by_taylor(network, groups, options, data)
    hidden = next(i for i, group in enumerate(groups) if group.root == "3")
    assert by == "the loss on labelled training samples"
    known = labels >= 0
    scores = network(torch.from_numpy(x[known]))
    loss = F.cross_entropy(scores, torch.from_numpy(labels[known]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, network[5].weight)
    expected = (gradient * network[5].weight).detach().sum(0).square() / 12
    assert torch.allclose(found[hidden].float(), expected, rtol=1e-3)


def test_costs_are_what_goes() -> None:
    network = seeded(mobile)
    example = [torch.from_numpy(pictures(1))]
    groups = find_groups(network, example).groups
    for of, macs in (("parameters", None), ("macs", count_macs(network, example))):
        for group, cost in zip(groups, compute_costs(network, groups, macs), strict=True):
            less = copy_without(network, group.cut([0, 1]))
            if of == "macs":
                gone = count_macs(network, example)[""] - count_macs(less, example)[""]
            else:
                gone = sum(p.numel() for p in network.parameters() if p.ndim > 1) - sum(
                    p.numel() for p in less.parameters() if p.ndim > 1
                )
                gone += 2 * sum("BatchNorm" in str(network.get_submodule(s.name))
                                for s in group.slices)  # fmt: skip
            assert cost == pytest.approx(gone / 2)


def test_taylor_takes_what_matters_least(tmp_path: Path) -> None:
    """Against the norm of the weights, on a network whose inputs differ in size."""
    network = seeded(lambda: mlp(64))
    x = pictures(200)
    x[:, 1:] *= 0.01
    data = given(tmp_path, network, x=x)
    reference = ask(network, x)
    found = {}
    for importance in ("l2", "taylor"):
        options = PruneOptions(structured=0.3, importance=importance, round_to=1)
        found[importance] = snr(
            reference, ask(prune(copy.deepcopy(network), options, data).model, x)
        )
    assert found["taylor"] > found["l2"] + 1


# The parts


def test_ranking_rounds_and_leaves_a_tenth() -> None:
    network = seeded(Residual)
    groups = find_groups(network, [torch.from_numpy(pictures(1))]).groups
    importance = [torch.arange(len(group.units), dtype=torch.float64) for group in groups]
    ranking = Ranking(groups, importance, per_layer=False, round_to=8)
    sizes = []
    for step in range(ranking.steps + 1):
        kept = [
            len(g.units) - len(x) for g, x in zip(groups, ranking.select_units(step), strict=True)
        ]
        assert all(count % 8 == 0 and count >= 8 for count in kept)
        sizes.append(sum(kept))
    assert sizes == sorted(sizes, reverse=True)
    assert find_smallest_step(ranking, lambda step: sizes[step] <= 100) == next(
        step for step, size in enumerate(sizes) if size <= 100
    )
    assert find_smallest_step(ranking, lambda step: False) is None


def test_cut_and_json() -> None:
    network = seeded(mobile)
    groups = find_groups(network, [torch.from_numpy(pictures(1))]).groups
    whole = Cut()
    for group in groups:
        whole.add(group.cut([1, 2]))
    again = Cut.from_json(whole.to_json())
    assert again == whole
    made = copy_without(network, again)
    assert same(made, copy_without(network, whole))
    assert made[3].groups == made[3].in_channels == made[3].out_channels == 22
    assert made[10].in_features == 4 * 46
    assert Cut.from_json({}) == Cut()
    with pytest.raises(CutError, match="no channel would remain"):
        cut(copy.deepcopy(network), Cut(outputs={"0": set(range(24))}))
    with pytest.raises(CutError, match="ReLU6"):
        cut(copy.deepcopy(network), Cut(outputs={"2": {1}}))


def test_macs_are_counted() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(800, 5)))
    found = count_macs(network, [torch.from_numpy(pictures(1))])
    assert found == {"": 8 * 27 * 100 + 4000, "0": 8 * 27 * 100, "2": 4000}


def test_after_a_factorization(tmp_path: Path) -> None:
    from edgepack.passes.factorize import FactorizeOptions, factorize

    network = seeded(Residual)
    data = given(tmp_path, network)
    smaller = factorize(copy.deepcopy(network), FactorizeOptions(parameters=0.6), data).model
    found = checked(smaller, PruneOptions(structured=0.3), data, pictures(3))
    assert any(name.endswith(".0") for name in found.details["structured"]["layers"])


def test_its_place_in_a_chain() -> None:
    steps = passes.parse_chain(
        "prune:structured=0.5:of=macs,distill,prune:pattern=2:4,distill,quantize"
    )
    passes.check_chain(steps)
    assert steps[2].read().pattern == "2:4"
    assert steps[0].read().needs == ()
    assert passes.parse_chain("prune:importance=taylor")[0].read().needs == ("training",)
    assert PruneOptions().structured == 0.5
    for written in ("prune:pattern=2:4,prune", "prune:unstructured=0.5,factorize"):
        with pytest.raises(ChainError) as caught:
            passes.check_chain(passes.parse_chain(written))
        assert caught.value.code == "chain-conflict"


def test_no_samples_are_asked_for_without_need(tmp_path: Path) -> None:
    network = seeded(mlp)
    data = replace(given(tmp_path, network), calibration=None, training=None)
    assert prune(copy.deepcopy(network), PruneOptions(), data).changed


class Rotary(nn.Module):
    """Attention with rotary embeddings, four heads, keys and values shared by two of them each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"q": nn.Linear(32, 32), "k": nn.Linear(32, 16), "v": nn.Linear(32, 16),
                 "o": nn.Linear(32, 32), "up": nn.Linear(32, 64), "down": nn.Linear(64, 32)}
            )
            for _ in range(3)
        )  # fmt: skip
        angle = torch.arange(9)[:, None] * torch.logspace(0, -2, 4).repeat(2)
        self.register_buffer("cosine", angle.cos())
        self.register_buffer("sine", angle.sin())
        self.head = nn.Linear(32, 5)

    def turned(self, x: Any) -> Any:
        one, two = x[..., :4], x[..., 4:]
        return x * self.cosine + torch.cat((-two, one), -1) * self.sine

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            q, k, v = (
                block[name](x).view(*x.shape[:2], -1, 8).transpose(1, 2) for name in ("q", "k", "v")
            )
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            read = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
            x = x + block["o"](read.transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](x)))
        return self.head(x.mean(1))


def test_rotary_embeddings_come_to_an_end(tmp_path: Path) -> None:
    network = seeded(Rotary)
    options = PruneOptions(structured=0.2, round_to=1)
    found = checked(network, options, given(tmp_path, network), pictures(3))
    assert "blocks.0.up" in found.details["structured"]["layers"]
    assert "does not terminate" in found.details["structured"]["left"]["blocks.0.q"]


class Keeping(nn.Module):
    """Keeps what it computes, writes into its input, and has a parameter of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 5)
        self.order = nn.Parameter(torch.arange(32), requires_grad=False)
        self.kept: Any = None

    def forward(self, x: Any) -> Any:
        x.mul_(0.5)
        self.kept = F.relu(self.one(x))[:, self.order]
        return self.head(F.relu(self.two(self.kept)).mean((2, 3)))


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_what_a_network_keeps_of_a_call_is_no_hindrance(tmp_path: Path, importance: str) -> None:
    network = seeded(Keeping)
    options = PruneOptions(structured=0.2, round_to=1, importance=importance)
    found = prune(copy.deepcopy(network), options, given(tmp_path, network))
    assert set(found.details["structured"]["layers"]) == {"two"}


def test_a_network_without_gradients_is_told_apart_from_one_without_layers(tmp_path: Path) -> None:
    class Ungraded(Residual):
        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                return super().forward(x)

    network = seeded(Ungraded)
    with pytest.raises(ChainError, match="has a gradient") as caught:
        prune(network, PruneOptions(), given(tmp_path, network))
    assert caught.value.code == "prune-graph"


def test_a_frozen_transformer_has_as_many_multiplications() -> None:
    """torch computes it with one fused function where nothing asks for a gradient."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    example = [torch.zeros(1, 9, 32)]
    # Queries, keys, values, output; the scores and what they weigh; the two of the feed forward.
    macs = 2 * (4 * 9 * 32 * 32 + 2 * 9 * 9 * 32 + 2 * 9 * 32 * 64)
    assert count_macs(network, example)[""] == macs
    assert count_macs(network.requires_grad_(False), example)[""] == macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_multiplications_where_a_part_is_given_a_parameter() -> None:
    class BuildContext(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Parameter(torch.ones(4, 8)), nn.LayerNorm(8)

        def forward(self, x: Any) -> Any:
            return x @ self.norm(self.table).t()

    assert count_macs(BuildContext().eval(), [torch.ones(1, 8)])[""] == 32


def test_the_layers_of_gpt_2_are_left_with_a_reason(tmp_path: Path) -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 32), nn.Linear(32, 32)
            self.foreign, self.head = pytorch_utils.Conv1D(16, 32), nn.Linear(16, 5)

        def forward(self, x: Any) -> Any:
            x = F.relu(self.two(F.relu(self.one(x.mean((2, 3))))))
            return self.head(F.relu(self.foreign(x)))

    network = seeded(Mixed)
    options = PruneOptions(structured=0.2, round_to=1)
    found = prune(copy.deepcopy(network), options, given(tmp_path, network))
    assert "Conv1D" in found.details["structured"]["left"]["foreign"]
    assert "one" in found.details["structured"]["layers"]
