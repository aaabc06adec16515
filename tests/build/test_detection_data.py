"""Boxes of a COCO file reach the metric of a build, in pixels of the network's input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.build_cases import ask
from support.picture_sets import coco_document, draw

# Boxes around the pixels that the network marks for each class.
DECODE = """
import numpy as np


def decode(outputs):
    results = []
    for maps in outputs["maps"]:
        boxes, scores, labels = [], [], []
        for label, marks in enumerate(maps):
            rows, columns = np.nonzero(marks > 0.5)
            if len(rows):
                boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
                scores.append(marks.max())
                labels.append(label)
        boxes = np.array(boxes).reshape(-1, 4)
        results.append({"boxes": boxes, "scores": scores, "labels": labels})
    return results
"""


def write_network(path: Path) -> None:
    """Write a network that marks red pixels as discs and blue ones as squares."""
    weights = np.array([[1, 0, -1], [-1, 0, 1]], np.float32)[:, :, None, None]
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["difference"]),
        helper.make_node("Relu", ["difference"], ["maps"]),
    ]
    graph = helper.make_graph(
        nodes,
        "marks",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 2, 32, 32])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )


def write_shapes(folder: Path, count: int) -> None:
    """Write a disc at the left and a square at the right, on even pixels of 64 x 48."""
    document = coco_document()
    document["images"], document["annotations"] = [], []
    generator = np.random.default_rng(0)
    for number in range(count):
        shapes = []
        for shape in range(2):
            left, top, width, height = (2 * generator.integers((0, 1, 5, 5), (6, 5, 9, 9))).tolist()
            left += 32 * shape
            shapes.append((shape, (left, top, left + width, top + height)))
            annotation = {"image_id": number, "category_id": (3, 18)[shape]}
            document["annotations"].append({**annotation, "bbox": [left, top, width, height]})
        draw(folder / f"{number:02}.png", shapes, seed=number)
        image = {"id": number, "file_name": f"{number:02}.png", "width": 64, "height": 48}
        document["images"].append(image)
    (folder / "instances.json").write_text(json.dumps(document))


def test_boxes_of_coco_reach_the_metric_of_a_build(tmp_path: Path) -> None:
    write_network(tmp_path / "marks.onnx")
    write_shapes(tmp_path / "shapes", 20)
    (tmp_path / "decode.py").write_text(DECODE)
    answer = ask(
        "build",
        str(tmp_path / "marks.onnx"),
        "--target=cpu-fbgemm",
        "--chain=none",
        f"--evaluation={tmp_path / 'shapes'}",
        "--pictures=letterbox=32,normalize=none",
        "--metric=map",
        f"--postprocess={tmp_path / 'decode.py'}:decode",
        "--latency=none",
        "--no-emulate",
        f"--output={tmp_path / 'marks.edgepack'}",
    )
    assert answer.status == 0, answer.stderr
    samples = next(entry for entry in answer.document["ledger"] if entry["stage"] == "samples")
    assert samples["details"]["classes"] == ["disc", "square"]
    assert samples["details"]["preprocessing"]["letterbox"] == 32
    # Corners on even pixels are exact at half the size, and so is every box.
    assert answer.document["quality"]["metric"]["original"] == pytest.approx(1)
