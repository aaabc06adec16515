"""A missed gate is won back with a few float layers, or refused with all that was tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import load
from support.build_cases import Answer, Home, ask, build, digest_of, edgepack, entry, one_document
from support.bundle_cases import run_bundle

LOUD = 300.0
HARD = "conv0"


def pictures(count: int, seed: int) -> np.ndarray:
    """(count, 2, 16, 16): a quiet channel that tells the class, and a loud one that does not."""
    generator = np.random.default_rng(seed)
    level, contrast = generator.normal(size=(2, count, 1, 1))
    fed = generator.normal(size=(count, 2, 16, 16))
    fed[:, 0] = level + contrast * fed[:, 0]
    fed[:, 1] *= LOUD
    return fed.astype(np.float32)


def network(layers: int = 3) -> onnx.ModelProto:
    """Convolutions and a Gemm; the first reads the loud channel, with weights that quieten it.

    So eight bits for both channels together leave nothing of the quiet one.
    """
    generator = np.random.default_rng(6)
    arrays: dict[str, np.ndarray] = {}
    nodes, x, inputs = [], "x", 2
    for i in range(layers):
        weight = generator.normal(size=(8, inputs, 3, 3)) / np.sqrt(9 * inputs)
        if i == 0:
            weight[:, 1] /= 10 * LOUD
        arrays[f"w{i}"] = weight.astype(np.float32)
        nodes += [
            helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        x, inputs = f"r{i}", 8
    arrays["g"] = generator.normal(size=(4, 8)).astype(np.float32)
    arrays["g"] -= arrays["g"].mean(0)
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "g"], ["scores"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "loud",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("loud")
    onnx.save(network(), folder / "loud.onnx")
    session = onnxruntime.InferenceSession(str(folder / "loud.onnx"))
    for role, count, seed in (("calibration", 100, 1), ("evaluation", 400, 2)):
        fed = pictures(count, seed)
        labels = session.run(None, {"x": fed})[0].argmax(1)
        np.savez(folder / f"{role}.npz", x=fed, labels=labels)
    assert np.bincount(labels).max() < 300
    return Home(folder)


@pytest.fixture
def command(loud: Home, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of a build with gates of its own."""

    def make(*options: str, model: str = "loud.onnx", **gates: float) -> list[str]:
        manifest = tmp_path / "m.toml"
        bounds = "\n".join(f"{name} = {bound}" for name, bound in gates.items())
        manifest.write_text(f"schema = 1\n[gates.quality]\n{bounds}\n")
        return loud.build(
            model, "--evaluation", loud / "evaluation.npz", "--manifest", str(manifest), *options
        )

    return make


def stages(answer: Answer) -> list[str]:
    return [record["stage"] for record in answer.document["ledger"]]


def test_the_layer_that_costs_most_goes_back_to_float(command: Any, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    answer = build(command(), output)
    repair = answer.stage("repair")
    assert repair["status"] == "done"
    assert [layer["name"] for layer in repair["details"]["returned"]] == [HARD]
    assert repair["notes"][0].startswith("1 of 4 layers back to float: +")
    assert repair["details"]["ranking"][0]["name"] == HARD
    # The price is the difference of two rows of the chain.
    quantized, change = answer.stage("quantize"), repair["measured"]["change"]
    assert {gate["name"] for gate in quantized["measured"]["missed"]} >= {"snr_db"}
    assert repair["measured"]["missed"] == []
    assert change["snr_db"] > 10
    assert change["metric_points"] > 0
    assert change["bytes"] == repair["bytes"] - quantized["bytes"]
    # The shipped file is the repaired one, and holds the gates where it runs.
    model = onnx.load_model_from_string(entry(output, "model/model.onnx"))
    (hard,) = [node for node in model.graph.node if node.name == HARD]
    assert hard.input[0] == "x"
    assert hard.input[1] in {t.name for t in model.graph.initializer if t.data_type == 1}
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 3
    done = run_bundle(output, "verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["passed"]) == (0, True)
    assert load(output)(x=pictures(2, 5))["scores"].shape == (2, 4)
    provenance = json.loads(entry(output, "bundle.json"))["provenance"]
    assert provenance["returned"] == [HARD]
    # What the build measured of it is what its loader found.
    shipped = answer.document["quality"]
    here = repair["measured"]["quality"]
    assert here["samples"] == shipped["samples"] == 400
    assert here["metric"] == shipped["metric"]
    assert here["outputs"]["scores"]["snr_db"] == pytest.approx(
        shipped["outputs"]["scores"]["snr_db"], abs=0.01
    )


def test_the_terminal_and_the_page_name_the_price(command: Any, tmp_path: Path) -> None:
    output = tmp_path / "x.edgepack"
    done = edgepack(*command(), "--output", str(output), env={"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("1 of 4 layers back to float: +") == 2
    page = entry(output, "report/report.html").decode().replace("\u00a0", " ")
    assert "1 of 4 layers back to float: +" in page
    assert page.count("misses a gate") == 1


def test_nothing_is_repaired_where_the_gates_hold(command: Any, tmp_path: Path) -> None:
    answer = build(command(snr_db=-5, max_drop=100, agreement=0), tmp_path / "x.edgepack")
    assert "repair" not in stages(answer)
    assert answer.stage("quantize")["details"]["layers_quantized"] == 4
    assert "returned" not in json.loads(entry(tmp_path / "x.edgepack", "bundle.json"))["provenance"]


def test_a_repair_is_taken_from_the_cache(command: Any, tmp_path: Path) -> None:
    first = build(command(), tmp_path / "a.edgepack")
    again = build(command(), tmp_path / "b.edgepack")
    assert again.stage("repair")["status"] == "cached"
    assert again.stage("repair")["details"] == first.stage("repair")["details"]
    assert digest_of(tmp_path / "a.edgepack") == digest_of(tmp_path / "b.edgepack")
    anew = build(command("--refresh"), tmp_path / "c.edgepack")
    assert anew.stage("repair")["status"] == "done"
    assert digest_of(tmp_path / "a.edgepack") == digest_of(tmp_path / "c.edgepack")
    # Other gates are another search.
    other = build(command(snr_db=12), tmp_path / "d.edgepack")
    assert other.stage("repair")["status"] == "done"


def test_what_no_layers_win_back_is_refused_with_the_best_kept_aside(
    command: Any, tmp_path: Path
) -> None:
    output = tmp_path / "x.edgepack"
    answer = ask(*command(snr_db=90), "--output", str(output))
    assert (answer.status, answer.code) == (1, "gate-missed")
    why = answer.document["error"]["why"]
    assert "SNR of scores" in why
    assert "No set of layers in float passes the gates" in why
    assert "of up to 3 of 4 layers" in why
    assert f'layer "{HARD}": ' in why
    assert not output.exists()
    aside = tmp_path / "x.rejected.edgepack"
    inside = json.loads(entry(aside, "report/report.json"))
    (repair,) = [r for r in inside["ledger"] if r["stage"] == "repair"]
    assert repair["status"] == "failed"
    found = repair["details"]
    tried = {t["layers"]: t["snr_db"] for t in found["tried"]}
    # All but one layer float is the most that was tried, and the nearest.
    assert max(tried) == 3
    assert len(found["returned"]) == max(tried, key=lambda n: tried[n]) == 3
    (metrics,) = inside["quality"]["outputs"].values()
    assert metrics["snr_db"] == pytest.approx(tried[3], abs=0.01)
    assert run_bundle(aside, "verify", "--json").returncode == 1


def test_a_build_of_its_own_ends_with_one(command: Any, tmp_path: Path) -> None:
    done = edgepack(*command("--json", snr_db=90), "--output", str(tmp_path / "x.edgepack"))
    assert done.returncode == 1
    assert one_document(done.stdout)["error"]["code"] == "gate-missed"
    assert "error[gate-missed]" in done.stderr


def test_without_repair_the_gate_is_missed(command: Any, tmp_path: Path) -> None:
    answer = ask(*command("--chain", "quantize:repair=false"), "--output", str(tmp_path / "x"))
    assert (answer.status, answer.code) == (1, "gate-missed")
    assert "back to float" not in answer.document["error"]["why"]
    inside = json.loads(entry(tmp_path / "x.rejected", "report/report.json"))
    assert "repair" not in [r["stage"] for r in inside["ledger"]]


def test_what_was_lost_before_is_not_searched_for(command: Any, tmp_path: Path) -> None:
    """A gate that the exported original misses already is no quantization's fault."""
    answer = ask(*command(snr_db=400), "--output", str(tmp_path / "x.edgepack"))
    assert (answer.status, answer.code) == (1, "gate-missed")
    error = answer.document["error"]
    assert "missed before any pass, since the stage 'simplify'" in error["why"]
    assert "The gates were missed before quantize, since simplify" in error["why"]
    assert "no chain can meet it" in error["hint"]
    inside = json.loads(entry(tmp_path / "x.rejected.edgepack", "report/report.json"))
    (repair,) = [r for r in inside["ledger"] if r["stage"] == "repair"]
    assert (repair["status"], repair["measured"]) == ("skipped", None)


def test_the_order_of_the_layers_in_the_file_does_not_matter(
    command: Any, loud: Home, tmp_path: Path
) -> None:
    """Two heads, written in either order: the same layers go back to float."""
    found = []
    for turned in (False, True):
        model = network()
        extra = [
            helper.make_node("Conv", ["x", "w9"], ["c9"], name="conv9", pads=[1] * 4),
            helper.make_node("GlobalAveragePool", ["c9"], ["p9"], name="pool9"),
            helper.make_node("Flatten", ["p9"], ["f9"], name="flat9"),
            helper.make_node("Gemm", ["f9", "g"], ["s9"], name="gemm9", transB=1),
        ]
        last = model.graph.node[-1]
        last.output[0] = "s0"
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend([*extra, *kept] if turned else [*kept, *extra])
        model.graph.node.append(helper.make_node("Add", ["s0", "s9"], ["scores"], name="sum"))
        weight = np.array(numpy_helper.to_array(model.graph.initializer[0]))[::-1]
        model.graph.initializer.append(numpy_helper.from_array(weight.copy(), "w9"))
        onnx.save(model, loud / f"turned{turned:d}.onnx")
        arguments = command(model=f"turned{turned:d}.onnx", snr_db=20, max_drop=100)
        answer = build(arguments, tmp_path / f"{turned:d}.edgepack")
        found.append([layer["name"] for layer in answer.stage("repair")["details"]["returned"]])
    assert found[0] == found[1]
    assert set(found[0]) >= {HARD, "conv9"}


def test_layers_without_ranges_are_repaired_as_well(command: Any, tmp_path: Path) -> None:
    """Four bits for weights: the generic way, which quantizes anew for every trial."""
    chain = ("--chain", "quantize:mode=weights:bits=4")
    alone = ask(*command(*chain, snr_db=60), "--output", str(tmp_path / "x.edgepack"))
    assert alone.code in ("", "gate-missed")
    inside = (
        alone.document
        if alone.status == 0
        else json.loads(entry(tmp_path / "x.rejected.edgepack", "report/report.json"))
    )
    (repair,) = [r for r in inside["ledger"] if r["stage"] == "repair"]
    assert repair["details"]["returned"]
    assert repair["measured"]["change"]["snr_db"] > 0
