"""A bundle whose inputs the user's own code prepares, and whose outputs it decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.build_cases import ask

MANIFEST = """schema = 1
name = "bytes"
postprocess = "post.py:decode"

[evaluation]
samples = "files"
metric = "metric.py:accuracy"

[preprocess]
code = "pre.py:prepare"
"""
PREPROCESS = '''"""The share of each of four kinds of bytes."""

import dataclasses
import numpy as np


@dataclasses.dataclass
class Kinds:
    """Bounds of the kinds."""

    bounds: tuple = (32, 65, 97)


def prepare(data):
    if not data:
        raise ValueError("an empty file")
    kinds = np.searchsorted(Kinds().bounds, np.frombuffer(data, np.uint8), side="right")
    shares = np.bincount(kinds, minlength=4) / len(data)
    return {"shares": shares.astype(np.float32)}
'''
POSTPROCESS = '''"""The likeliest kind, with its share."""

import numpy as np

NAMES = ["control", "digit", "upper", "lower"]


def decode(outputs):
    results = []
    for row in outputs["scores"]:
        best = int(np.argmax(row))
        results.append({"kind": NAMES[best], "score": row[best], "index": best})
    return results
'''
METRIC = '''"""The share of files whose kind is that of their folder."""


def accuracy(results, labels):
    return sum(r["index"] == label for r, label in zip(results, labels)) / len(labels)


accuracy.higher_is_better = True
'''
CLASSES = ("a-control", "b-digit", "c-upper", "d-lower")


def kinds_onnx() -> onnx.ModelProto:
    """Return a network that scores four kinds by their shares."""
    weights = np.eye(4, dtype=np.float32) * 3
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["shares", "w"], ["scores"])],
        "bytes",
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_code_home(home: Path) -> None:
    """Write a model, its manifest, the user's files, and files in a folder for each kind."""
    onnx.save(kinds_onnx(), home / "bytes.onnx")
    (home / "bytes.toml").write_text(MANIFEST)
    for name, text in (("pre", PREPROCESS), ("post", POSTPROCESS), ("metric", METRIC)):
        (home / f"{name}.py").write_text(text)
    generator = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (home / "files" / name).mkdir(parents=True)
        for file in range(8):
            low = (0, 32, 65, 97)[number]
            data = generator.integers(low, low + 20, 40).astype(np.uint8).tobytes()
            (home / "files" / name / f"{file}.dat").write_bytes(data + bytes([file, 40, 70, 100]))


@pytest.fixture(scope="session")
def code_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle beside its model, manifest and files."""
    home = tmp_path_factory.mktemp("bytes")
    write_code_home(home)
    output = home / "bytes.edgepack"
    answer = ask(
        "build", str(home / "bytes.onnx"), "--manifest", str(home / "bytes.toml"),
        "--target", "cpu-fbgemm", "--chain", "none", "--no-emulate", "--latency", "none",
        "--output", str(output),
    )  # fmt: skip
    assert answer.status == 0, answer.stderr
    return output
