"""Seconds and memory of whole builds, stage by stage, beside an earlier checkout.

    python benchmarks/build_time.py [--before CHECKOUT] [--only NAME ...] [--no-emulate]

Three builds, each in processes of its own with an empty cache:

lite0        EfficientNet-Lite0 with its real weights on 1,040 pictures: the demo (`make demo`)
encoder      a transformer of 4 layers and 256 channels, random weights, 512 ragged sequences
repair       47 linear layers, of which two miss the gates until they return to float

CPU seconds count the build and every process that it starts; they say more than wall-clock time on
a machine with other work. Memory is the peak of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import record

DEMO = record.ROOT / "demo"


def write_lite0(folder: Path) -> list[str]:
    """Return the arguments of the demo's build."""
    if not (DEMO / "efficientnet-lite0.pth").is_file():
        raise SystemExit("no demo/efficientnet-lite0.pth: run make demo first")
    manifest = record.ROOT / "manifests" / "efficientnet-lite0.toml"
    return [str(DEMO / "efficientnet-lite0.pth"), "--manifest", str(manifest)]


def write_encoder(folder: Path) -> list[str]:
    """Export a transformer encoder with random weights, and write its sequences."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(500, 256)
            layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.head = nn.Linear(256, 8)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.layers(self.table(tokens)).mean(1))
            return scores

    example = (torch.zeros(2, 64, dtype=torch.int64),)
    program = torch.onnx.export(
        Encoder().eval(),
        example,
        dynamo=True,
        opset_version=18,
        input_names=["tokens"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    program.save(str(folder / "encoder.onnx"))
    generator = np.random.default_rng(0)
    for role, count in (("calibration", 128), ("evaluation", 512)):
        np.savez(folder / f"{role}.npz", tokens=generator.integers(0, 500, (count, 64)))
    return _describe(folder, "encoder.onnx", "--chain", "quantize:mode=dynamic")


def write_repair(folder: Path) -> list[str]:
    """Write a network of linear layers, two of which read a channel that is far too loud."""
    generator = np.random.default_rng(3)
    arrays: dict[str, np.ndarray] = {"loud": np.ones(32, np.float32)}
    arrays["loud"][0] = 300
    nodes, x = [], "x"
    for i in range(47):
        weight = generator.normal(size=(32, 32)).astype(np.float32) / np.float32(np.sqrt(32))
        if i in (11, 30):
            weight[:, 0] /= 300
            nodes.append(helper.make_node("Mul", [x, "loud"], [f"m{i}"], name=f"loud{i}"))
            x = f"m{i}"
        arrays[f"w{i}"] = weight
        nodes.append(helper.make_node("Gemm", [x, f"w{i}"], [f"g{i}"], name=f"gemm{i}", transB=1))
        nodes.append(helper.make_node("Tanh", [f"g{i}"], [f"t{i}"], name=f"tanh{i}"))
        x = f"t{i}"
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "deep.onnx")
    for role, count in (("calibration", 128), ("evaluation", 512)):
        values = generator.standard_normal((count, 32)).astype(np.float32)
        np.savez(folder / f"{role}.npz", x=values)
    (folder / "deep.toml").write_text("schema = 1\n[gates.quality]\nsnr_db = 14.0\n")
    return _describe(folder, "deep.onnx", "--manifest", str(folder / "deep.toml"))


def _describe(folder: Path, model: str, *options: str) -> list[str]:
    samples = []
    for role in ("calibration", "evaluation"):
        samples += [f"--{role}", str(folder / f"{role}.npz")]
    return [str(folder / model), *samples, *options]


BUILDS: dict[str, Callable[[Path], list[str]]] = {
    "lite0": write_lite0,
    "encoder": write_encoder,
    "repair": write_repair,
}


def measure(checkout: Path, arguments: list[str], options: list[str]) -> dict[str, Any]:
    """Build once with the edgepack of a checkout, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "x.edgepack"
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "EDGEPACK_CACHE": str(Path(folder) / "cache"),
        }
        command = [sys.executable, "-m", "edgepack", "build", *arguments]
        command += ["--target", "cpu-fbgemm", "--output", str(output), "--allow-unverified", "-q"]
        started = time.perf_counter()
        process = subprocess.Popen([*command, *options], cwd=checkout, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        rejected = output.with_name("x.rejected.edgepack")
        if not output.is_file() and not rejected.is_file():
            raise SystemExit(f"the build failed with status {os.waitstatus_to_exitcode(status)}")
        bundle = output if output.is_file() else rejected
        with zipfile.ZipFile(bundle) as archive:
            report = json.loads(archive.read("report/report.json"))
    stages: dict[str, float] = {}
    for entry in report["ledger"]:
        stages[entry["stage"]] = round(stages.get(entry["stage"], 0) + entry["seconds"], 2)
    (quality,) = report["quality"]["outputs"].values()
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "snr_db": round(quality["snr_db"], 2),
        "verdict": report["verdict"],
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit")
    parser.add_argument("--only", nargs="*", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--no-emulate", action="store_true")
    chosen = parser.parse_args()
    options = ["--no-emulate"] if chosen.no_emulate else []
    builds = dict(record.read("build-time").get("builds", {}))
    for name in chosen.only:
        with tempfile.TemporaryDirectory() as folder:
            arguments = BUILDS[name](Path(folder))
            row = {"now": measure(record.ROOT, arguments, options)}
            if chosen.before:
                row["before"] = measure(chosen.before.resolve(), arguments, options)
                row["ratio"] = {}
                for figure in ("seconds", "cpu_seconds", "peak_mb"):
                    row["ratio"][figure] = round(row["before"][figure] / row["now"][figure], 2)
        builds[name] = row
        print(json.dumps({name: row}, indent=1), flush=True)
    record.write("build-time", builds=builds)


if __name__ == "__main__":
    main()
