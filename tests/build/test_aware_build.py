"""Whole builds that train for int8: a gate that rounding misses is held, with real pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from support.build_cases import Answer, ask, digest_of
from support.fashion_cases import ARCH, IMPORTS, TENSORS, WEIGHTS, need_pictures

pytest.importorskip("accelerate")

CODE = f"""{IMPORTS}
from torch import nn


def perceptron():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def pictures(split, count):
    images, labels = fashion_resnet.pictures(split)
    return fashion_resnet.standardise(images[:count]), labels[:count].astype("int64")


def training():
    yield {{"image": pictures("train", 10000)[0]}}


def few():
    yield {{"image": pictures("train", 512)[0]}}


def calibration():
    yield {{"image": pictures("train", 60)[0]}}


def evaluation():
    images, labels = pictures("test", 2000)
    yield {{"image": images, "label": labels}}


def few_evaluation():
    images, labels = pictures("test", 500)
    yield {{"image": images, "label": labels}}
"""

MANIFEST = """
schema = 1
name = "aware"

[model]
arch = "{arch}"
{tensors}
[training]
samples = "code.py:{training}"

[calibration]
samples = "code.py:calibration"

[evaluation]
samples = "code.py:{evaluation}"

[gates.quality]
max_drop = 1
agreement = {agreement}
snr_db = {snr_db}
"""
FOUR_BITS = "quantize:mode=weights:bits=4:repair=false"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples, and a perceptron that was trained on 10,000 pictures."""
    need_pictures()
    folder = tmp_path_factory.mktemp("aware")
    (folder / "code.py").write_text(CODE)
    namespace: dict = {}
    exec(CODE, namespace)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = namespace["perceptron"]()
        images, labels = (torch.from_numpy(a) for a in namespace["pictures"]("train", 10000))
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for _ in range(4):
            for picked in torch.randperm(10000).split(100):
                loss = nn.functional.cross_entropy(network(images[picked]), labels[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    torch.set_num_threads(threads)
    save_file(network.state_dict(), folder / "perceptron.safetensors")
    (folder / "perceptron.toml").write_text(
        MANIFEST.format(
            tensors=TENSORS,
            arch="code.py:perceptron",
            training="training",
            evaluation="evaluation",
            agreement=0.985,
            snr_db=29,
        )
    )
    (folder / "resnet.toml").write_text(
        MANIFEST.format(
            tensors=TENSORS,
            arch=ARCH,
            training="few", evaluation="few_evaluation", agreement=0.97, snr_db=25,
        )
    )  # fmt: skip
    return folder


def build(home: Path, manifest: str, weights: Path, output: Path, chain: str) -> Answer:
    return ask(
        "build", str(weights), "--target", "cpu-fbgemm", "--manifest", str(home / manifest),
        "--chain", chain, "--latency", "none", "--no-emulate", "--output", str(output),
    )  # fmt: skip


def test_what_four_bits_lose_training_brings_back(home: Path, tmp_path: Path) -> None:
    weights = home / "perceptron.safetensors"
    lost = build(home, "perceptron.toml", weights, tmp_path / "lost.edgepack", FOUR_BITS)
    assert lost.status == 1, lost.stderr
    assert lost.document["error"]["code"] == "gate-missed"
    assert not (tmp_path / "lost.edgepack").exists()

    chain = f"distill:aware=true:epochs=2,{FOUR_BITS}"
    held = build(home, "perceptron.toml", weights, tmp_path / "held.edgepack", chain)
    assert held.status == 0, held.stderr
    details = held.stage("distill")["details"]
    assert details["aware"] == {"layers": 3, "outputs": 0, "folded": 0, "left": {}}
    assert not any("rounding=nearest" in note for note in held.stage("distill")["notes"])


def test_a_network_with_batch_norms(home: Path, tmp_path: Path) -> None:
    chain = "distill:aware=true:epochs=1:batch_size=64,quantize:rounding=nearest"
    one = build(home, "resnet.toml", WEIGHTS, tmp_path / "one.edgepack", chain)
    assert one.status == 0, one.stderr
    record = one.stage("distill")
    assert record["details"]["aware"]["folded"] == 21
    assert record["details"]["aware"]["layers"] == 22
    # The graph is the same: the export folds them too.
    assert record["parameters"] == one.stage("simplify")["parameters"]
    assert any("bias_correction=false" in note for note in record["notes"])

    again = build(home, "resnet.toml", WEIGHTS, tmp_path / "again.edgepack", chain)
    assert again.stage("distill")["status"] == "cached"
    assert digest_of(tmp_path / "again.edgepack") == digest_of(tmp_path / "one.edgepack")

    # What is trained depends on what it is trained for.
    other = build(home, "resnet.toml", WEIGHTS, tmp_path / "other.edgepack",
                  chain + ":range=reduced")  # fmt: skip
    assert other.stage("distill")["status"] == "done"


def test_a_chain_that_does_not_quantize_is_refused_at_once(home: Path, tmp_path: Path) -> None:
    weights = home / "perceptron.safetensors"
    answer = build(home, "perceptron.toml", weights, tmp_path / "x.edgepack", "distill:aware=true")
    assert answer.status == 2
    assert "error[chain-conflict]" in answer.stderr
    assert "no quantize follows" in answer.stderr
