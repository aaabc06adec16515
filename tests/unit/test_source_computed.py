"""Weights that hooks compute, and networks of other float types: what the source makes of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgepack.errors import SourceError
from edgepack.source import Source, load

NETS = '''\
import torch
from torch import nn
from torch.nn.utils import spectral_norm, weight_norm


def normalized():
    return nn.Sequential(
        weight_norm(nn.Conv1d(2, 6, 3)), nn.ReLU(), spectral_norm(nn.Conv1d(6, 4, 3)),
        nn.Flatten(), weight_norm(nn.Linear(16, 3), dim=None),
    )


def parametrized():
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Conv1d(2, 6, 3)), nn.Flatten(), norm(nn.Linear(36, 3)))


def older():
    return nn.Sequential(
        weight_norm(nn.Conv1d(2, 6, 3)), nn.Flatten(), weight_norm(nn.Linear(36, 3))
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = weight_norm(nn.LSTM(2, 3, batch_first=True), "weight_hh_l0")

    def forward(self, x):
        return self.cell(x.transpose(1, 2))[0]


class Equalized(nn.Module):
    """StyleGAN's equalized learning rate: a hook of the user's, and a view of a parameter."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)
        weight = self.layer.weight
        del self.layer._parameters["weight"]
        self.layer.weight_orig = nn.Parameter(weight.detach())
        self.layer.weight = weight.detach().clone()
        self.layer.register_forward_pre_hook(scale)
        self.columns = self.layer.weight_orig.data.T

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x) + x @ self.columns


def scale(layer, _):
    layer.weight = layer.weight_orig * (2 / layer.weight_orig.shape[1]) ** 0.5


class Noisy(nn.Module):
    """Weights that a hook computes, and a table that is drawn at random."""

    def __init__(self, table):
        super().__init__()
        self.layer = weight_norm(nn.Linear(16, 3))
        if table == "buffer":
            self.register_buffer("table", torch.randn(3), persistent=False)
        else:
            self.layer.table = torch.randn(3)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Mixed(nn.Module):
    """Casts inside, types that differ by layer, and a float64 table."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 8).half(), nn.Linear(8, 3).bfloat16()
        self.register_buffer("shift", torch.ones(8, dtype=torch.float64))

    def forward(self, x):
        y = self.one(x.flatten(1).half()) + self.shift.half()
        return self.two(y.bfloat16()).float()


class Functional(nn.Module):
    """Uses a parameter directly, and casts what meets it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16).half())

    def forward(self, x):
        return nn.functional.linear(x.flatten(1).half(), self.weight).float()


def plain(dtype):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))
    return network.to(getattr(torch, dtype))
'''
X = {"x": np.random.default_rng(0).normal(size=(4, 2, 8)).astype(np.float32)}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The factories, in a folder of their own."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(NETS, space)
    return space


def trained(factory: Any, *arguments: Any) -> Any:
    """Return a network in eval mode whose normalizations have seen a few steps."""
    torch.manual_seed(3)
    network = factory(*arguments).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.rand_like(parameter) / 2)
        for _ in range(3):
            first = next(iter(network.parameters()))
            network(torch.from_numpy(X["x"]).to(first.dtype))
    return network.eval()


def check(network: Any, arch: str, **options: Any) -> Source:
    """The source answers as the network does, and can be copied and exported."""
    torch.save(network.state_dict(), "m.pt")
    source = load(Path("m.pt"), arch=f"nets.py:{arch}", **options)
    with torch.no_grad():
        wanted = network(torch.from_numpy(X["x"])).numpy()
    np.testing.assert_allclose(source.run(X)[0], wanted, rtol=1e-4, atol=1e-5)
    copy.deepcopy(source.module)
    program = torch.export.export(source.module, (torch.from_numpy(X["x"]),)).module()
    with torch.no_grad():
        exported = program(torch.from_numpy(X["x"]))
    (answer,) = exported if isinstance(exported, tuple) else (exported,)
    np.testing.assert_allclose(answer.numpy(), wanted, rtol=1e-4, atol=1e-5)
    return source


@pytest.mark.parametrize("arch", ["normalized", "Recurrent"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_normalization_computes_are_not_random(
    nets: dict[str, Any], arch: str
) -> None:
    network = trained(nets[arch])
    source = check(network, arch)
    assert any("WeightNorm" in note for note in source.notes)
    assert not any(part._forward_pre_hooks for part in source.module.modules())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_older_weight_norm_fills_the_newer(
    nets: dict[str, Any], prefix: str
) -> None:
    network = trained(nets["older"])
    torch.save({prefix + name: value for name, value in network.state_dict().items()}, "m.pt")
    source = load(Path("m.pt"), arch="nets.py:parametrized")
    with torch.no_grad():
        wanted = network(torch.from_numpy(X["x"])).numpy()
    np.testing.assert_allclose(source.run(X)[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_pickled_network_with_a_normalization(nets: dict[str, Any]) -> None:
    import torch.nn.utils as utils

    network = torch.nn.Sequential(torch.nn.Flatten(), utils.spectral_norm(torch.nn.Linear(16, 3)))
    torch.save(network.eval(), "whole.pt")
    source = load(Path("whole.pt"), trust_pickle=True)
    with torch.no_grad():
        wanted = network(torch.from_numpy(X["x"])).numpy()
    np.testing.assert_allclose(source.run(X)[0], wanted, atol=1e-5)
    assert "weight" in dict(source.module[1].named_parameters())


def test_views_and_what_a_hook_of_the_user_computes_are_not_random(nets: dict[str, Any]) -> None:
    network = trained(nets["Equalized"])
    torch.save(network.state_dict(), "m.pt")
    source = load(Path("m.pt"), arch="nets.py:Equalized")
    with torch.no_grad():
        wanted = network(torch.from_numpy(X["x"])).numpy()
    np.testing.assert_allclose(source.run(X)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("table", ["buffer", "attribute"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_table_that_is_drawn_at_random_is_still_refused(nets: dict[str, Any], table: str) -> None:
    torch.save(nets["Noisy"](table).state_dict(), "m.pt")
    with pytest.raises(SourceError) as caught:
        load(Path("m.pt"), arch="nets.py:Noisy", arch_args={"table": table})
    assert caught.value.code == "source-weights-unsaved"
    assert "table" in caught.value.what


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_network_of_another_float_type_is_cast_to_float32(
    nets: dict[str, Any], dtype: str
) -> None:
    network = trained(nets["plain"], dtype)
    torch.save(network.state_dict(), "m.pt")
    source = load(Path("m.pt"), arch="nets.py:plain", arch_args={"dtype": dtype})
    assert {t.dtype for t in source.module.state_dict().values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        wanted = network.float()(torch.from_numpy(X["x"])).numpy()
    for fed in (X["x"], X["x"].astype(np.float64)):
        np.testing.assert_allclose(source.run({"x": fed})[0], wanted, rtol=1e-4, atol=1e-5)
    assert f"from {dtype} to float32" in " ".join(source.notes)


def test_weights_in_float32_keep_their_digits_in_a_network_of_half_precision(
    nets: dict[str, Any],
) -> None:
    network = trained(nets["plain"], "float32")
    check(network, "plain", arch_args={"dtype": "bfloat16"})


def test_casts_inside_forward_reach_float32_layers(nets: dict[str, Any]) -> None:
    network = trained(nets["Mixed"])
    torch.save(network.state_dict(), "m.pt")
    source = load(Path("m.pt"), arch="nets.py:Mixed")
    with torch.no_grad():
        wanted = network(torch.from_numpy(X["x"])).numpy()
    np.testing.assert_allclose(source.run(X)[0], wanted, rtol=0.05, atol=0.05)
    assert source.module.shift.dtype == torch.float64


def test_a_network_that_casts_beside_its_own_parameters_stays_as_it_is(
    nets: dict[str, Any],
) -> None:
    source = check(nets["Functional"]().eval(), "Functional")
    assert any("Functional casts its own operands" in note for note in source.notes)
    assert source.module.weight.dtype == torch.float16
