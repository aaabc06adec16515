"""A transformer in int8 without static ranges: edgepack beside PyTorch's own dynamic quantization.

    .venv/bin/python benchmarks/dynamic.py

The network is the sentence classifier of examples/tiny_bert.py with four layers of width 192,
which is trained first where demo/small-bert is not there (some minutes). Every contender is judged
on the same 853 held-out sentences, each alone and as long as it is, against PyTorch in float32, and
timed on one thread in a process of its own, in turns, so that a machine whose speed drifts is the
same for all. Beside the latency stands the thread's CPU time: the same on a quiet machine, and the
better figure on a busy one, so that the speed-ups are those of it.

Two layers of the four are then left out and taught by the whole network again
(`distill:layers=0,2`). Results go to benchmarks/results/dynamic.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import record
from edgepack import data, graph, source
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.progress import SilentProgress
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.parity.accuracy import Accuracy

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo" / "small-bert"
MODEL = DEMO / "model"
NETWORK = ("--layers", "4", "--width", "192", "--epochs", "2", "--rate", "5e-4")
STUDENT = "distill:layers=0,2:epochs=1:lr=3e-4"
TIMED = 100
TORCH, TORCH_DYNAMIC = "PyTorch fp32", "PyTorch quantize_dynamic"
# Options of `quantize`; the tables of embeddings, which PyTorch leaves float, in two ways.
QUANTIZED: dict[str, dict[str, Any]] = {
    "dynamic int8": {"mode": "dynamic"},
    "dynamic int8, gptq": {"mode": "dynamic", "rounding": "gptq"},
    "dynamic int8, embeddings float": {"mode": "dynamic", "exclude": "Gather"},
    "static int8": {},
    "int8 weights": {"mode": "weights"},
    "int4 weights": {"mode": "weights", "bits": 4},
    "int4 weights, gptq": {"mode": "weights", "bits": 4, "rounding": "gptq"},
}
STUDENT_QUANTIZED = ("dynamic int8", "int4 weights, gptq")


def prepare() -> None:
    """Train the network where it is not there."""
    if not MODEL.is_dir():
        script = ROOT / "examples" / "tiny_bert.py"
        command = [sys.executable, str(script), "train", *NETWORK, "--output", str(DEMO)]
        subprocess.run(command, check=True)


def sentences() -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """The held-out sentences without their padding, each a batch of one; and their labels."""
    with np.load(DEMO / "evaluation.npz") as stored:
        ids, mask, labels = (stored[n] for n in ("input_ids", "attention_mask", "labels"))
    lengths = mask.sum(axis=1)
    feeds = [
        {"input_ids": ids[i : i + 1, :n], "attention_mask": mask[i : i + 1, :n]}
        for i, n in enumerate(lengths)
    ]
    return feeds, labels


def exported(found: Any) -> onnx.ModelProto:
    """The network as edgepack exports and simplifies it."""
    calibration = data.open_samples(str(DEMO / "calibration.npz"), found.inputs)
    feed = next(calibration.batches(1)).inputs
    made = graph.export_module(found.module, found.inputs, feed, 18, found.output_names)
    return graph.simplify(made.model, feed).model


def student(work: Path) -> onnx.ModelProto:
    """Two layers of the four, taught by the whole network: out of the bundle of a build."""
    manifest = work / "student.toml"
    # Whatever it comes to is to be measured here.
    manifest.write_text("schema = 1\n[gates.quality]\nsnr_db = -50\nmetric_ratio = 0.5\n")
    bundle = work / "student.edgepack"
    samples = [f"--{role}={DEMO / role}.npz" for role in ("calibration", "evaluation", "training")]
    subprocess.run(
        [sys.executable, "-m", "edgepack", "build", str(MODEL), "--target", "cpu-fbgemm",
         "--manifest", str(manifest), "--chain", STUDENT, *samples, "--latency", "none",
         "--no-emulate", "--output", str(bundle)],
        check=True,
    )  # fmt: skip
    with Archive(str(bundle)) as archive:
        return onnx.load_model_from_string(archive.read(read_index(archive).model))


def quantized(
    model: onnx.ModelProto, found: Any, given: Mapping[str, Any]
) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    """A model after `quantize`, and its figures; exclude = an operator, not a name."""
    kind = given.get("exclude")
    names = tuple(node.name for node in model.graph.node if node.op_type == kind)
    options = QuantizeOptions(**{**given, "exclude": names})
    calibration = data.open_samples(str(DEMO / "calibration.npz"), found.inputs)
    result = quantize(model, calibration if options.needs else None, options, SilentProgress())
    return result.model, result.details


def torch_network(dynamic: bool) -> Any:
    """The network in PyTorch, float32 or with its linear layers in dynamic int8."""
    found = source.load(MODEL)
    if not dynamic:
        return found.module
    torch.backends.quantized.engine = "x86"
    return torch.ao.quantization.quantize_dynamic(
        found.module, {torch.nn.Linear}, dtype=torch.qint8
    )


def torch_answers(network: Any, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """(sentences, classes) scores."""
    with torch.inference_mode():
        made = [network(*(torch.from_numpy(v) for v in feed.values())) for feed in feeds]
    return np.concatenate([(m if torch.is_tensor(m) else m[0]).numpy() for m in made])


def torch_bytes(network: Any) -> int:
    """What its weights take in a file of PyTorch's."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.getbuffer().nbytes


def session(path: Path) -> Any:
    """onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def judged(
    original: np.ndarray, answers: np.ndarray, labels: np.ndarray, size: int
) -> dict[str, Any]:
    """The figures of one contender."""
    parity, accuracy = record.scores_parity([original]), Accuracy("top1")
    parity.update(original, answers, len(original))
    accuracy.update(original, answers, labels)
    result = parity.result()
    return {
        "bytes": size,
        "snr_db": result["snr_db"],
        "agreement": result["top1_agreement"],
        "top1": accuracy.result()["model"],
        "samples": len(labels),
    }


def turn(name: str, path: Path | None) -> None:
    """One turn of one contender, in this process: the median sentence's latency and CPU time."""
    feeds = sentences()[0][:TIMED]
    if path is None:
        torch.set_num_threads(1)
        network = torch_network(name == TORCH_DYNAMIC)
        given = [[torch.from_numpy(v) for v in feed.values()] for feed in feeds]

        def call(i: int) -> None:
            network(*given[i])
    else:
        runner = session(path)

        def call(i: int) -> None:
            runner.run(None, feeds[i])

    with torch.inference_mode():
        for i in range(TIMED // 4):
            call(i)
        times: list[tuple[int, int]] = []
        for i in range(TIMED):
            started, spent = time.perf_counter_ns(), time.thread_time_ns()
            call(i)
            spent = time.thread_time_ns() - spent
            times.append((time.perf_counter_ns() - started, spent))
    print(json.dumps([statistics.median(column) / 1e6 for column in zip(*times, strict=True)]))


def timed(models: Mapping[str, Path | None], rows: dict[str, Any], rounds: int) -> None:
    """The median sentence of every contender, the contenders in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(rounds):
        for name, path in models.items():
            command = [sys.executable, __file__, "--turn", name, *([str(path)] if path else [])]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            wall, cpu = json.loads(done.stdout.splitlines()[-1])
            found[name].append((wall, cpu))
    for name, pairs in found.items():
        ratios = [a[1] / b[1] for a, b in zip(found[TORCH_DYNAMIC], pairs, strict=True)]
        rows[name]["rounds_p50_ms"] = [round(wall, 4) for wall, _ in pairs]
        rows[name]["rounds_cpu_ms"] = [round(cpu, 4) for _, cpu in pairs]
        rows[name]["p50_ms"] = round(statistics.median(wall for wall, _ in pairs), 4)
        rows[name]["cpu_ms"] = round(statistics.median(cpu for _, cpu in pairs), 4)
        rows[name]["speed_up_over_quantize_dynamic"] = round(statistics.median(ratios), 3)


def contenders(
    work: Path, found: Any, feeds: list[dict[str, np.ndarray]], labels: np.ndarray
) -> tuple[dict[str, Path | None], dict[str, Any]]:
    """The files to be timed, by name (None: PyTorch), and what each answers."""
    original = torch_answers(torch_network(False), feeds)
    models: dict[str, Path | None] = {}
    rows: dict[str, Any] = {}
    for name in (TORCH, TORCH_DYNAMIC):
        network = torch_network(name == TORCH_DYNAMIC)
        models[name] = None
        answers = torch_answers(network, feeds)
        rows[name] = judged(original, answers, labels, torch_bytes(network))

    def add(name: str, model: onnx.ModelProto, details: Mapping[str, Any] | None = None) -> None:
        path = work / f"{len(models)}.onnx"
        onnx.save(model, path)
        runner = session(path)
        answers = np.concatenate([runner.run(None, feed)[0] for feed in feeds])
        models[name] = path
        rows[name] = judged(original, answers, labels, path.stat().st_size)
        if details is not None:
            kept = ("layers_quantized", "layers_in_blocks", "tables_quantized", "kernels")
            rows[name].update({key: details[key] for key in kept if key in details})
        print(
            name, {k: rows[name][k] for k in ("bytes", "snr_db", "agreement", "top1")}, flush=True
        )

    whole = exported(found)
    add("edgepack fp32", whole)
    for name, given in QUANTIZED.items():
        add(f"edgepack {name}", *quantized(whole, found, given))
    taught = student(work)
    add("edgepack 2 of 4 layers, fp32", taught)
    for name in STUDENT_QUANTIZED:
        add(f"edgepack 2 of 4 layers, {name}", *quantized(taught, found, QUANTIZED[name]))
    return models, rows


def show(rows: Mapping[str, Any]) -> None:
    """The table."""
    print(f"{'':44} {'p50 ms':>8} {'CPU ms':>8} {'speed':>7} {'agrees':>8} {'top-1':>8} "
          f"{'SNR dB':>7} {'MB':>6}")  # fmt: skip
    for name, row in rows.items():
        snr = "" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        speed = row["speed_up_over_quantize_dynamic"]
        print(
            f"{name:44} {row['p50_ms']:8.3f} {row['cpu_ms']:8.3f} {speed:6.2f}x "
            f"{100 * row['agreement']:6.2f} % {100 * row['top1']:6.2f} % {snr:>7} "
            f"{row['bytes'] / 1e6:6.2f}"
        )


def main() -> None:
    """Make the contenders, judge them, time them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        turn(options.turn[0], Path(options.turn[1]) if len(options.turn) > 1 else None)
        return
    torch.set_num_threads(1)
    prepare()
    found = source.load(MODEL)
    feeds, labels = sentences()
    with tempfile.TemporaryDirectory(prefix="edgepack-dynamic-") as folder:
        models, rows = contenders(Path(folder), found, feeds, labels)
        timed(models, rows, options.rounds)
    show(rows)
    record.write(
        "dynamic",
        threads=1,
        network=" ".join(NETWORK),
        student=STUDENT,
        sentence_tokens_median=int(np.median([f["input_ids"].shape[1] for f in feeds[:TIMED]])),
        rows=rows,
    )


if __name__ == "__main__":
    main()
