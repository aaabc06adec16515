"""A small network for photographs, with samples cut out of two photographs of scikit-learn."""

from __future__ import annotations

import io
from importlib import util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgepack.runtime.preprocess.picture import Picture
from support.build_cases import edgepack

SIDE, NAMES = 32, ("building", "flower", "leaf", "roof", "sky", "stone")
MANIFEST = """schema = 1
name = "photos"

[[outputs]]
name = "scores"
kind = "scores"

[calibration]
samples = "calibration"

[evaluation]
samples = "evaluation"

[pictures]
resize = 36
crop = 32
interpolation = "bilinear"
colour = "rgb"
layout = "nchw"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[gates.quality]
snr_db = 8
agreement = 0.5
"""
PICTURE = Picture(
    resize=36, crop=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), input="image"
)
BUILD = ("--target", "cpu-fbgemm", "--no-emulate", "--latency", "none")


def photographs() -> list[Image.Image]:
    """Return the two photographs in scikit-learn's package, of 640 x 427 pixels."""
    spec = util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]


def cut_photographs(folder: Path, count: int, seed: int) -> None:
    """Write JPEGs of several sizes, each a piece of one of the photographs."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    sources = photographs()
    for number in range(count):
        source = sources[number % 2]
        width, height = generator.integers(60, 240, 2).tolist()
        left = int(generator.integers(0, source.width - width))
        top = int(generator.integers(0, source.height - height))
        piece = source.crop((left, top, left + width, top + height))
        piece.save(folder / f"{number:03}.jpg", quality=int(generator.integers(70, 96)))


def photo_onnx(bias: np.ndarray) -> onnx.ModelProto:
    """Return a network of two convolutions with random weights, for pictures of 32 x 32 pixels."""
    generator = np.random.default_rng(3)
    weights = {"d": bias.astype(np.float32)}
    for name, shape in (("a", (16, 3, 5, 5)), ("b", (32, 16, 3, 3)), ("c", (len(NAMES), 32))):
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[name] = (generator.normal(size=shape) * scale).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["1"], strides=[2, 2], pads=[2] * 4),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("GlobalAveragePool", ["4"], ["5"]),
        helper.make_node("Flatten", ["5"], ["6"]),
        helper.make_node("Gemm", ["6", "c", "d"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "photos",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(NAMES)])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as a file of some kind."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos.onnx, photos.toml and pictures to calibrate and evaluate on."""
    folder = tmp_path_factory.mktemp("photos")
    write_photo_home(folder)
    return folder


def write_photo_home(folder: Path) -> None:
    """Write the files of `photo_home`; each picture is in the folder of the class it gets."""
    cut_photographs(folder / "calibration", 60, 1)
    cut_photographs(folder / "cut", 40, 2)
    (folder / "photos.toml").write_text(MANIFEST)
    paths = sorted((folder / "cut").iterdir())
    arrays = [PICTURE.to_array(path.read_bytes()) for path in paths]
    # Less one of their largest values, the scores of random weights choose every class.
    scores = classify(photo_onnx(np.zeros(len(NAMES))), np.stack(arrays))
    bias = -np.percentile(scores, 90, axis=0)
    model = photo_onnx(bias)
    onnx.save(model, folder / "photos.onnx")
    classes = classify(model, np.stack(arrays)).argmax(1).tolist()
    assert set(classes) == set(range(len(NAMES)))
    for path, number in zip(paths, classes, strict=True):
        target = folder / "evaluation" / NAMES[number] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def classify(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    """Return the scores of a network."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (scores,) = session.run(None, {"image": pictures})
    return np.asarray(scores)


@pytest.fixture(scope="session")
def photo_bundle(photo_home: Path) -> Path:
    """A bundle with raw references and class names, built by the program itself."""
    output = photo_home / "photos.edgepack"
    done = edgepack(
        "build", "photos.onnx", "--manifest", "photos.toml", *BUILD, "--output", str(output),
        cwd=photo_home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output
