"""What the build asks of every pass on the module, and what it does with the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack import passes
from edgepack.errors import ChainError
from edgepack.stages.module import _serialize
from support.build_cases import Answer, Home, ask, digest_of
from support.faulty_pass import Cut

NETS = """
import threading

from torch import nn

from nets import tiny


def locked():
    network = tiny()
    network.lock = threading.Lock()
    return network
"""


@pytest.fixture(autouse=True)
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes.PASSES, "cut", Cut)


def build(home: Home, output: Path, passes: str, arch: str = "nets.py:tiny") -> Answer:
    (Path(home / "locked.py")).write_text(NETS)
    (output.parent / "loose.toml").write_text(
        "schema = 1\n[gates.quality]\nagreement = 0.1\nsnr_db = -50\nmetric_ratio = 0\n"
    )
    return ask(*home.build(
        "tiny.pt", "--arch", home / arch, "--evaluation", home / "evaluation.npz", "--chain",
        passes, "--manifest", str(output.parent / "loose.toml"), "--output", str(output),
    ))  # fmt: skip


def test_what_was_cut_is_exported_and_measured(torch_home: Home, tmp_path: Path) -> None:
    answer = build(torch_home, tmp_path / "a.edgepack", "cut,cut:how=nothing,quantize")
    assert answer.status == 0, answer.stderr
    first, second = (r for r in answer.document["ledger"] if r["stage"] == "cut")
    before = answer.stage("simplify")
    assert before["parameters"] - first["parameters"] == 2 * (9 + 1) + 2 * 16 * 9
    assert first["bytes"] < before["bytes"]
    assert first["details"] == {"left": 6}
    assert first["parity"]["output"]["snr_db"] < before["parity"]["output"]["snr_db"]
    assert (second["status"], second["notes"]) == ("skipped", ["There is nothing to cut."])
    assert (second["bytes"], second["parity"]) == (first["bytes"], first["parity"])
    again = build(torch_home, tmp_path / "b.edgepack", "cut,cut:how=nothing,quantize")
    assert again.stage("cut")["status"] == "cached"
    assert digest_of(tmp_path / "a.edgepack") == digest_of(tmp_path / "b.edgepack")


@pytest.mark.parametrize(
    ("how", "code"), [("secretly", "chain-replay"), ("classes", "chain-outputs")]
)
def test_a_pass_that_breaks_its_word(torch_home: Home, tmp_path: Path, how: str, code: str) -> None:
    for _ in range(2):  # nothing of it was kept
        answer = build(torch_home, tmp_path / "a.edgepack", f"cut:how={how}")
        assert (answer.status, answer.code) == (2, code)
    assert not (tmp_path / "a.edgepack").exists()


def test_a_network_that_cannot_be_copied(torch_home: Home, tmp_path: Path) -> None:
    answer = build(torch_home, tmp_path / "a.edgepack", "cut", arch="locked.py:locked")
    assert (answer.status, answer.code) == (2, "chain-module-copy")


def test_a_state_that_is_no_tensor() -> None:
    from torch import nn

    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    with pytest.raises(ChainError) as caught:
        _serialize(Extra(2, 2))
    assert caught.value.code == "chain-module-state"


def test_a_shared_tensor_is_kept_once() -> None:
    import torch
    from safetensors.torch import load
    from torch import nn

    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    kept = load(_serialize(network))
    assert list(kept) == ["0.weight"]
    assert torch.equal(kept["0.weight"], network[1].weight)
