"""Seconds of edgepack's quantization beside those of onnxruntime's, on the same samples.

    python benchmarks/quantize_speed.py [--rounds 3] [MODEL.onnx SAMPLES.npz ...]

onnxruntime's `quantize_static` calibrates by MinMax and rounds to the nearest; edgepack chooses
ranges from histograms, rounds with compensation (gptq) and corrects biases. Both read the same
arrays and write a model; each run is a process of its own, in turns, and its imports do not count.
The signal-to-noise ratio of either's model is measured against the float model on other samples of
the same kind: the second half of the file, where the first half calibrates.

Without arguments: EfficientNet-Lite0 with its real weights on the demo's pictures (if `demo/` has
them, else on smooth noise), a convolution net of 512 channels, and a net whose second convolution
has 1,024 channels and 64 taps, K = 65,536, both with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import calibration_memory
import record

ROOT = Path(__file__).resolve().parents[1]
BATCH = 4


def edgepack(model: Path, samples: dict[str, np.ndarray], output: Path) -> tuple[float, Any]:
    """Quantize with edgepack's defaults; return the seconds, and those of each phase."""
    import onnx

    import edgepack.passes.quantize.static.quantizer
    from edgepack.data.samples import Batch
    from edgepack.passes.quantize import QuantizeOptions, quantize

    class Arrays:
        origin = "arrays"

        def batches(self, size: int) -> Iterator[Batch]:
            total = len(next(iter(samples.values())))
            for start in range(0, total, size):
                part = {name: array[start : start + size] for name, array in samples.items()}
                yield Batch(part, None, min(size, total - start))

    assert edgepack.passes.quantize.static.quantizer
    started = time.perf_counter()
    loaded = onnx.load(str(model))
    result = quantize(loaded, Arrays(), QuantizeOptions(), calibration_memory.Quiet())
    onnx.save(result.model, str(output))
    return time.perf_counter() - started, result.details["seconds"]


def onnxruntime(model: Path, samples: dict[str, np.ndarray], output: Path) -> tuple[float, Any]:
    """Quantize as onnxruntime does: u8 activations by MinMax, s8 weights per channel."""
    import logging

    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.number = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.number += 1
            if self.number > len(next(iter(samples.values()))):
                return None
            return {name: array[self.number - 1 : self.number] for name, array in samples.items()}

    logging.disable()
    started = time.perf_counter()
    quantize_static(
        str(model),
        str(output),
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return time.perf_counter() - started, None


TOOLS = {"onnxruntime": onnxruntime, "edgepack": edgepack}


def peak_bytes() -> int:
    """Peak resident set of this process so far (Linux)."""
    return calibration_memory.peak_bytes()


def once(tool: str, model: Path, samples: Path, output: Path) -> None:
    """Quantize in this process, and print the figures."""
    with np.load(samples) as archive:
        arrays = {name: archive[name] for name in archive.files}
    half = len(next(iter(arrays.values()))) // 2
    arrays = {name: array[:half] for name, array in arrays.items()}
    import onnxruntime.quantization  # noqa: F401  (imports of either do not count)

    before = peak_bytes()
    seconds, phases = TOOLS[tool](model, arrays, output)
    print(json.dumps({"seconds": seconds, "phases": phases, "peak": peak_bytes() - before}))


def answers(model: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the first output of a model on the second half of the samples."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    total = len(next(iter(arrays.values())))
    rows = []
    for start in range(total // 2, total, BATCH):
        feed = {name: array[start : start + BATCH] for name, array in arrays.items()}
        rows.append(session.run(None, feed)[0])
    return np.concatenate(rows)


def snr_db(real: np.ndarray, found: np.ndarray) -> float:
    """Return the signal-to-noise ratio in dB."""
    noise = np.square(real.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(real.astype(np.float64)).sum() / noise))


def compare(model: Path, samples: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """Run both tools in turns; return the median seconds, the ratio and the quality."""
    with np.load(samples) as archive:
        arrays = {name: archive[name] for name in archive.files}
    real = answers(model, arrays)
    row: dict[str, Any] = {"model": model.name, "samples": len(next(iter(arrays.values()))) // 2}
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool, results in runs.items():
            output = folder / f"{tool}.onnx"
            done = subprocess.run(
                [sys.executable, __file__, "--once", tool, str(model), str(samples), str(output)],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            if done.returncode != 0:
                raise SystemExit(f"{tool} failed on {model}:\n{done.stderr[-2000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    for tool, results in runs.items():
        seconds = [result["seconds"] for result in results]
        row[tool] = {
            "seconds": round(statistics.median(seconds), 2),
            "all": [round(value, 2) for value in seconds],
            "peak_mb": round(max(result["peak"] for result in results) / 2**20),
            "snr_db": round(snr_db(real, answers(folder / f"{tool}.onnx", arrays)), 2),
        }
        if results[0]["phases"]:
            row[tool]["phases"] = results[-1]["phases"]
    row["ratio"] = round(row["edgepack"]["seconds"] / row["onnxruntime"]["seconds"], 2)
    return row


def smooth(count: int, *shape: int) -> np.ndarray:
    """Return picture-like noise."""
    pictures = [calibration_memory.sample(number, (1, *shape))[0] for number in range(count)]
    return np.stack(pictures)


def write_lite(folder: Path) -> tuple[Path, Path]:
    """Write EfficientNet-Lite0 and the demo's pictures."""
    model, samples = folder / "efficientnet-lite0.onnx", folder / "efficientnet-lite0.npz"
    calibration_memory.export(model)
    pictures = sorted((ROOT / "demo/calibration").glob("*.png"))
    others = sorted((ROOT / "demo/evaluation").rglob("*.png"))[::4][: len(pictures)]
    if not pictures or len(others) < len(pictures):
        np.savez(samples, image=smooth(448, 3, 224, 224))
        return model, samples
    from PIL import Image

    arrays = []
    for path in (*pictures, *others):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
        arrays.append(((pixels - 127) / 128).transpose(2, 0, 1))
    np.savez(samples, image=np.stack(arrays))
    return model, samples


def write_network(folder: Path, name: str, shape: tuple[int, ...], layers: list[Any]) -> Path:
    """Write convolutions with random weights, each with a Relu and a pool of two, and a Gemm.

    Args:
        folder: to write to.
        name: of the file.
        shape: of one sample, channels first.
        layers: (channels, kernel) of every convolution; the stride is 1.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, constants, x, channels = [], [], "x", shape[0]
    for number, (outputs, kernel) in enumerate(layers):
        fan = channels * int(np.prod(kernel))
        weight = random.standard_normal((outputs, channels, *kernel)) * np.sqrt(2 / fan)
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        bias = (random.standard_normal(outputs) / 10).astype(np.float32)
        constants.append(numpy_helper.from_array(bias, f"b{number}"))
        inputs, pool = [x, f"w{number}", f"b{number}"], [min(2, size) for size in kernel]
        nodes += [
            helper.make_node("Conv", inputs, [f"c{number}"], auto_pad="SAME_UPPER"),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
            helper.make_node(
                "MaxPool", [f"r{number}"], [f"p{number}"], kernel_shape=pool, strides=pool
            ),
        ]
        x, channels = f"p{number}", outputs
    weight = (random.standard_normal((10, channels)) / np.sqrt(channels)).astype(np.float32)
    constants.append(numpy_helper.from_array(weight, "last"))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "last"], ["y"], transB=1),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
    graph = helper.make_graph(nodes, name, [value], [onnx.ValueInfoProto(name="y")], constants)
    opsets = [helper.make_opsetid("", 18)]
    path = folder / f"{name}.onnx"
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return path


def write_defaults(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Write the networks of a run without arguments, with their samples."""
    yield write_lite(folder)
    pictures, signals = folder / "pictures.npz", folder / "signals.npz"
    np.savez(pictures, x=smooth(200, 3, 32, 32))
    np.savez(signals, x=smooth(200, 1, 512, 1) + smooth(200, 1, 512, 1)[::-1])
    square = [(64, (3, 3)), (512, (3, 3)), (512, (3, 3))]
    yield write_network(folder, "conv512", (3, 32, 32), square), pictures
    taps = [(1024, (64, 1)), (128, (64, 1)), (256, (16, 1))]
    yield write_network(folder, "taps64", (1, 512, 1), taps), signals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="MODEL.onnx SAMPLES.npz ...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        once(chosen.once[0], *map(Path, chosen.once[1:]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = zip(chosen.files[::2], chosen.files[1::2], strict=True)
        rows = []
        for model, samples in pairs if chosen.files else write_defaults(folder):
            row = compare(model, samples, chosen.rounds, folder)
            rows.append(row)
            ours, theirs = row["edgepack"], row["onnxruntime"]
            print(
                f"{row['model']:<28}{ours['seconds']:>8.2f} s {theirs['seconds']:>8.2f} s "
                f"{row['ratio']:>6.2f}x {ours['snr_db']:>7.2f} dB {theirs['snr_db']:>7.2f} dB "
                f"{ours['peak_mb']:>6} MB {theirs['peak_mb']:>6} MB",
                flush=True,
            )
    record.write("quantize-speed", rounds=chosen.rounds, runs=rows)


if __name__ == "__main__":
    main()
