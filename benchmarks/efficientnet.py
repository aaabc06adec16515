"""EfficientNet-Lite0 in int8: the bundle beside what onnxruntime's own quantizer and PyTorch give.

    make demo && .venv/bin/python benchmarks/efficientnet.py

Every contender is made from the same fp32 graph and the same calibration crops, judged on the
same evaluation crops against the original in PyTorch, and timed in a process of its own, in turns,
so that a machine whose speed drifts is the same for all. Results go to
benchmarks/results/efficientnet.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import record
from edgepack import data, graph, source
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.bench import percentiles
from edgepack.runtime.parity.accuracy import Accuracy
from edgepack.runtime.preprocess.picture import Picture
from edgepack.spec import manifest as manifests

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
BUNDLE = DEMO / "efficientnet-lite0-cpu-fbgemm.edgepack"

U8, S8 = QuantType.QUInt8, QuantType.QInt8
# Name, options of onnxruntime's quantize_static, most calibration crops. Its histogram calibrators
# keep every intermediate tensor of every sample in memory, so that they are given fewer.
PEERS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("quantize_static, its defaults", {}, 1000),
    (
        "u8s8 per channel, minmax",
        {"activation_type": U8, "weight_type": S8, "per_channel": True},
        1000,
    ),
    (
        "u8s8 per channel, percentile",
        {
            "activation_type": U8,
            "weight_type": S8,
            "per_channel": True,
            "calibrate_method": CalibrationMethod.Percentile,
        },
        64,
    ),
    (
        "u8s8 per channel, minmax, reduced range",
        {"activation_type": U8, "weight_type": S8, "per_channel": True, "reduce_range": True},
        1000,
    ),
)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples as onnxruntime's calibrators read them."""

    def __init__(self, samples: Any, limit: int) -> None:
        self._feeds = self._iterate(samples, limit)

    def _iterate(self, samples: Any, limit: int) -> Iterator[dict[str, np.ndarray]]:
        for i, batch in enumerate(samples.batches(1)):
            if i == limit:
                return
            yield dict(batch.inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, or None."""
        return next(self._feeds, None)


TORCH_TURN = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from pathlib import Path
from edgepack import source
found = source.load(Path(sys.argv[2]), arch=sys.argv[3])
feed = torch.zeros(1, 3, 224, 224)
times, clock = [], time.perf_counter_ns
with torch.inference_mode():
    for _ in range(5):
        found.module(feed)
    end = clock() + int(float(sys.argv[4]) * 1e9)
    while clock() < end:
        started = clock()
        found.module(feed)
        times.append(clock() - started)
print(json.dumps({"ns": times}))
"""


def _turn(name: str, model: Path | None, arch: str, seconds: float) -> list[int]:
    if name == "PyTorch eager":
        weights = str(DEMO / "efficientnet-lite0.pth")
        command = [sys.executable, "-c", TORCH_TURN, str(ROOT), weights,
                   arch, str(seconds)]  # fmt: skip
    else:
        against = [f"--against={model}"] if model else []
        command = [sys.executable, str(BUNDLE), "bench-turn", "--queries=10",
                   f"--seconds={seconds}", *against]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times: list[int] = json.loads(done.stdout)["ns"]
    return times


def main() -> None:
    """Make the contenders, judge them, time them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--haswell", type=int, default=12, help="pictures on the emulated CPU")
    options = parser.parse_args()

    manifest = manifests.load(ROOT / "manifests" / "efficientnet-lite0.toml")
    arch = f"{ROOT / 'examples' / 'efficientnet_lite0.py'}:model"
    found = source.load(DEMO / "efficientnet-lite0.pth", arch=arch)
    preprocessing = Picture(**(manifest.pictures or {}))

    def samples(name: str) -> Any:
        return data.open_samples(str(DEMO / name), manifest.inputs, preprocessing=preprocessing)

    with tempfile.TemporaryDirectory(prefix="edgepack-peers-") as folder:
        work = Path(folder)
        models = _contenders(work, found, manifest, samples("calibration"))
        rows = _judge(models, found, samples("evaluation"))
        _time(models, rows, arch, options.rounds, options.seconds)
        _on_haswell(models, rows, samples("evaluation"), options.haswell, work)
    _show(rows)
    record.write("efficientnet", rows=rows)


def _contenders(work: Path, found: Any, manifest: Any, calibration: Any) -> dict[str, Path | None]:
    feed = next(calibration.batches(1)).inputs
    exported = graph.export_module(found.module, manifest.inputs, feed, 18, ("logits",))
    fp32 = work / "fp32.onnx"
    onnx.save(graph.simplify(exported.model, feed).model, fp32)
    prepared = work / "prepared.onnx"
    quant_pre_process(str(fp32), str(prepared))
    shipped = work / "shipped.onnx"
    with Archive(str(BUNDLE)) as archive:
        shipped.write_bytes(archive.read(read_index(archive).model))
    models: dict[str, Path | None] = {"fp32": fp32, "edgepack": shipped}
    for i, (name, options, limit) in enumerate(PEERS):
        path = work / f"peer-{i}.onnx"
        quantize_static(
            str(prepared), str(path), Reader(calibration, limit),
            quant_format=QuantFormat.QDQ, **options,
        )  # fmt: skip
        models[name] = path
    models["PyTorch eager"] = None
    return models


def _judge(models: dict[str, Path | None], found: Any, evaluation: Any) -> dict[str, Any]:
    runners = {name: graph.Runner(path) for name, path in models.items() if path}
    answers = [found.run(batch.inputs)[0] for batch in evaluation.batches(8)]
    parities = {name: record.scores_parity(answers) for name in runners}
    accuracies = {name: Accuracy("top1") for name in runners}
    for batch, original in zip(evaluation.batches(8), answers, strict=True):
        for name, runner in runners.items():
            (measured,) = runner.run(batch.inputs)
            parities[name].update(original, measured, len(original))
            accuracies[name].update(original, measured, batch.labels)
    rows: dict[str, Any] = {name: {} for name in models}
    for name, parity in parities.items():
        result = parity.result()
        rows[name] = {
            "bytes": models[name].stat().st_size,  # type: ignore[union-attr]
            "snr_db": result["snr_db"],
            "agreement": result["top1_agreement"],
            "top1": accuracies[name].result()["model"],  # type: ignore[index]
            "samples": parity.decisions,
        }
    return rows


def _time(
    models: dict[str, Path | None], rows: dict[str, Any], arch: str, rounds: int, seconds: float
) -> None:
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, path in models.items():
            p50 = percentiles(_turn(name, path, arch, seconds))["p50"]
            times[name].append(p50 or float("nan"))
    for name, found in times.items():
        rows[name]["rounds_p50_ms"] = found
        rows[name]["p50_ms"] = statistics.median(found)
        ratios = [a / b for a, b in zip(times["fp32"], found, strict=True)]
        rows[name]["speed_up_over_fp32"] = statistics.median(ratios)


HASWELL = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pictures = np.load(sys.argv[2])
name = session.get_inputs()[0].name
np.save(sys.argv[3], np.concatenate([session.run(None, {name: p[None]})[0] for p in pictures]))
"""


def _on_haswell(
    models: dict[str, Path | None], rows: dict[str, Any], evaluation: Any, count: int, work: Path
) -> None:
    """Outputs on an emulated CPU without VNNI, against this machine's own."""
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or not count:
        return
    # Spread over the set, whose pictures follow each other.
    every = [b.inputs["image"][0] for i, b in enumerate(evaluation.batches(1)) if i % 43 == 0]
    pictures = work / "pictures.npy"
    np.save(pictures, np.stack(every[:count]))
    python = Path(sys.executable).resolve()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for name, path in models.items():
        if path is None or name == "fp32":
            continue
        answers = {}
        for cpu, prefix in (("host", []), ("Haswell", [qemu, "-cpu", "Haswell"])):
            out = work / f"{cpu}.npy"
            command = [*prefix, str(python), "-c", HASWELL, str(path), str(pictures), str(out)]
            subprocess.run(command, check=True, env=environment)
            answers[cpu] = np.load(out)
        parity = record.scores_parity([answers["host"]])
        parity.update(answers["host"], answers["Haswell"], len(answers["host"]))
        rows[name]["haswell"] = {
            "pictures": len(answers["host"]),
            "bit_exact": parity.exact,
            "snr_db": parity.result()["snr_db"],
        }


def _show(rows: dict[str, Any]) -> None:
    print(f"{'':42} {'p50 ms':>8} {'speed':>6} {'agrees':>8} {'SNR dB':>7} {'MB':>6}  Haswell")
    for name, row in rows.items():
        share = f"{100 * row['agreement']:.2f} %" if "agreement" in row else ""
        snr = f"{row['snr_db']:.1f}" if row.get("snr_db") is not None else ""
        size = f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else ""
        haswell = row.get("haswell")
        told = ""
        if haswell:
            told = "same bits" if haswell["bit_exact"] else f"{haswell['snr_db']:.1f} dB"
        print(
            f"{name:42} {row['p50_ms']:8.2f} {row['speed_up_over_fp32']:5.2f}x {share:>8} "
            f"{snr:>7} {size:>6}  {told}"
        )


if __name__ == "__main__":
    main()
