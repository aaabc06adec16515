"""The part of a model that an accelerator takes is counted, shown and gated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack.device import Local, verify_bundle
from edgepack.graph import count_by_node
from edgepack.report import render_matrix
from edgepack.runtime.documents import PlacementDocument, Reason
from edgepack.runtime.parity.verdict import FAIL, PASS, decide
from edgepack.runtime.session.onnx_session import import_engine
from edgepack.runtime.session.placement import (
    RECORD,
    describe_placement,
    judge_placement,
    read_nodes,
    summarise,
)
from support.build_cases import render_text

# Folder of `pip install --target FOLDER --no-deps onnxruntime-openvino`, whose provider stands in
# for a GPU's: it takes what it can and leaves the rest to the CPU.
WHEEL = os.environ.get("EDGEPACK_ONNXRUNTIME_OPENVINO", "")
PROVIDER = "OpenVINOExecutionProvider"
PRODUCTS = {"wide": 4 * 64, "narrow": 64 * 2}


def model_with_two_products() -> onnx.ModelProto:
    """y = Hardmax(x @ [4, 64] @ [64, 2]); OpenVINO's provider does not take Hardmax."""
    rng = np.random.default_rng(0)
    weights = []
    for name, shape in (("a", (4, 64)), ("b", (64, 2))):
        weights.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "wide"),
        helper.make_node("MatMul", ["h", "b"], ["s"], "narrow"),
        helper.make_node("Hardmax", ["s"], ["y"], "decide"),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def placement_on(provider: str) -> PlacementDocument:
    """Return the placement of that model, which the CPU runs, as a provider's."""
    ort = import_engine()
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    session = ort.InferenceSession(
        model_with_two_products().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = read_nodes(session)
    assert nodes is not None
    return summarise(nodes, provider, PRODUCTS)


def test_products_are_counted_by_node() -> None:
    model = model_with_two_products()
    assert count_by_node(model, {"x": np.zeros((1, 4), np.float32)}) == PRODUCTS


def test_a_provider_that_took_nothing_misses_its_gate() -> None:
    placement = placement_on("CUDAExecutionProvider")
    judge_placement(placement, {"min_share": 0.5})
    assert (placement["owned"], placement["nodes"], placement["macs_share"]) == (0, 3, 0)
    title, gate = describe_placement(placement)
    assert "0 of 3 nodes and 0 % of the multiply-accumulates" in title
    assert "2 MatMul (CPUExecutionProvider)" in title
    assert gate.startswith("  FAIL CUDAExecutionProvider: 0 % of the model (at least 50 %)")
    doubts: list[Reason] = []
    verdict, reasons = decide([], doubts, placement)
    assert (verdict, reasons[0]["code"]) == (FAIL, "gate-missed")


def test_a_provider_that_took_everything_passes() -> None:
    placement = placement_on("CPUExecutionProvider")
    judge_placement(placement, {"min_share": 1.0})
    assert (placement["macs_share"], placement["others"], placement["passed"]) == (1, [], True)
    assert decide([], [], placement) == (PASS, [])


def test_without_counts_the_gate_holds_the_share_of_nodes() -> None:
    placement = placement_on("CPUExecutionProvider")
    placement["macs_share"], placement["owned"] = None, 2
    judge_placement(placement, {"min_share": 0.9})
    assert placement["gates"][0]["measured"] == pytest.approx(2 / 3)
    assert not placement["passed"]


def test_the_table_of_devices_names_what_ran_elsewhere(linear_bundle: Path) -> None:
    placement = placement_on("CUDAExecutionProvider")
    with Local() as host:
        verdict = verify_bundle(host, str(linear_bundle))
    verdict["placement"] = placement
    matrix = {"devices": [{"name": "gpu", "emulated": False, "verdict": verdict}]}
    text = render_text(render_matrix, matrix)
    assert "gpu, placement: 0 of 3 nodes" in text
    assert "2 MatMul (CPUExecutionProvider)" in text


SCRIPT = """
import json, sys
from edgepack.runtime.session.onnx_session import OnnxSession
from edgepack.runtime.session.placement import judge_placement, summarise
session = OnnxSession(open(sys.argv[1], "rb").read(), provider=sys.argv[2])
placement = summarise(session.nodes, session.provider, json.loads(sys.argv[3]))
judge_placement(placement, {"min_share": 0.9})
print(json.dumps(placement))
"""


@pytest.mark.skipif(
    not WHEEL,
    reason="EDGEPACK_ONNXRUNTIME_OPENVINO names no folder with the onnxruntime-openvino wheel",
)
def test_an_operator_that_a_real_provider_does_not_take_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_with_two_products(), path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([WHEEL, *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), PROVIDER, json.dumps(PRODUCTS)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    placement: dict[str, Any] = json.loads(done.stdout)
    assert (placement["owned"], placement["nodes"]) == (2, 3)
    assert placement["others"] == ["1 Hardmax (CPUExecutionProvider)"]
    assert (placement["macs_share"], placement["passed"]) == (1, True)
