"""Whole builds with `prune` and `factorize` in their chain, on a network for real pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.build_cases import Answer, ask, digest_of
from support.fashion_cases import ARCH, IMPORTS, TENSORS, WEIGHTS, need_pictures

pytest.importorskip("torch_pruning")


SAMPLES = f"""{IMPORTS}


def calibration():
    images, _ = fashion_resnet.pictures("train")
    yield {{"image": fashion_resnet.standardise(images[-60:])}}


def training():
    images, labels = fashion_resnet.pictures("train")
    yield {{"image": fashion_resnet.standardise(images[:200]), "label": labels[:200]}}


def evaluation():
    images, labels = fashion_resnet.pictures("test")
    yield {{"image": fashion_resnet.standardise(images[:300]), "label": labels[:300]}}
"""

# Nothing is trained again here: the gates are for what a chain of cuts alone leaves.
MANIFEST = f"""
schema = 1
name = "cut"
chain = "prune,factorize,quantize"

[model]
arch = "{ARCH}"
{TENSORS}
[prune]
structured = 0.5
importance = "taylor"
samples = 200

[factorize]
parameters = 0.6

[calibration]
samples = "cut.py:calibration"

[training]
samples = "cut.py:training"

[evaluation]
samples = "cut.py:evaluation"

[gates.quality]
metric_ratio = 0.0
agreement = 0.0
snr_db = -20
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of a chain of cuts, and its samples."""
    need_pictures()
    made = tmp_path_factory.mktemp("cut")
    (made / "cut.py").write_text(SAMPLES)
    (made / "cut.toml").write_text(MANIFEST)
    return made


def build(folder: Path, output: Path, *options: str) -> Answer:
    return ask(
        "build", str(WEIGHTS), "--target", "cpu-fbgemm", "--manifest", str(folder / "cut.toml"),
        "--latency", "none", "--no-emulate", "--output", str(output), *options,
    )  # fmt: skip


def test_cut_factorized_and_quantized(folder: Path, tmp_path: Path) -> None:
    answer = build(folder, tmp_path / "a.edgepack")
    assert answer.status == 0, answer.stderr
    stages = [record["stage"] for record in answer.document["ledger"]]
    order = [stages.index(name) for name in ("simplify", "prune", "factorize", "quantize")]
    assert order == sorted(order)
    original, pruned, factorized = (
        answer.stage(name) for name in ("simplify", "prune", "factorize")
    )
    figures = pruned["details"]["structured"]
    assert figures["parameters"][1] <= 0.5 * figures["parameters"][0]
    assert figures["by"] == "the loss on labelled training samples"
    assert factorized["parameters"] < pruned["parameters"] < 0.55 * original["parameters"]
    assert factorized["bytes"] < pruned["bytes"] < 0.6 * original["bytes"]
    assert factorized["details"]["layers"]
    assert pruned["parity"]["scores"]["snr_db"] is not None

    again = build(folder, tmp_path / "b.edgepack")
    assert {again.stage(name)["status"] for name in ("prune", "factorize")} == {"cached"}
    assert digest_of(tmp_path / "b.edgepack") == digest_of(tmp_path / "a.edgepack")


def test_zeros_alone_keep_the_answers_and_the_size(folder: Path, tmp_path: Path) -> None:
    answer = build(
        folder, tmp_path / "z.edgepack", "--chain", "prune:structured=0:unstructured=0.4"
    )
    assert answer.status == 0, answer.stderr
    pruned, original = answer.stage("prune"), answer.stage("simplify")
    assert pruned["bytes"] == original["bytes"]
    assert pruned["parameters"] == original["parameters"]
    assert any("the file is no smaller" in note for note in pruned["notes"])
    assert answer.document["quality"]["metric"]["model"] > 0.9
