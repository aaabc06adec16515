"""Instructions of one inference on emulated ARM processors, int8 beside its own fp32.

    .venv/bin/edgepack emulator prepare
    .venv/bin/python benchmarks/instructions.py

Every model of `manifests/` that is here is built twice for `arm-qnnpack`, quantized and with the
chain `none`; both run through onnxruntime on one thread of each emulated CPU. These are counts of
instructions and not time: how long each takes, what waits for memory and what runs side by side
only a board can tell. Results go to benchmarks/results/instructions.json.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import record
from edgepack.device import count
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import read_index

ROOT = Path(__file__).resolve().parents[1]
CPUS = ("cortex-a53", "cortex-a72", "neoverse-n1", "neoverse-i8mm")
# Manifest, what it builds from, and what brings that where it is not here.
MODELS = (
    ("fashion-resnet", "examples/weights/fashion-resnet.safetensors", "the repository"),
    ("tiny-bert", "demo/tiny-bert/model", "examples/tiny_bert.py train"),
    ("silero-vad", "demo/silero-vad/silero-vad.safetensors", "examples/silero_vad.py prepare"),
    ("efficientnet-lite0", "demo/efficientnet-lite0.pth", "make demo"),
)
# What is counted here the build need not prove on emulated CPUs.
TARGET = 'schema = 1\nextends = "arm-qnnpack"\n[emulate]\ncpus = []\n'


def _build(folder: Path, name: str, source: str, chain: str) -> Path:
    (folder / "arm.toml").write_text(TARGET)
    output = folder / f"{name}-{chain}.edgepack"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgepack", "build", source, "--target", folder / "arm.toml"),
            *("--manifest", f"manifests/{name}.toml", "--chain", chain, "--latency", "none"),
            *("--quiet", "--no-emulate", "--allow-unverified", "--output", output),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    return output


def _count(folder: Path, name: str, source: str, cpus: list[str]) -> dict[str, Any]:
    quantized, float32 = (_build(folder, name, source, chain) for chain in ("quantize", "none"))
    original = folder / f"{name}.onnx"
    with Archive(str(float32)) as archive:
        original.write_bytes(archive.read(read_index(archive).model))
    found: dict[str, Any] = {}
    for cpu in cpus:
        counted = count(quantized, cpu, original)
        found[cpu] = counted.to_json()
        _show(name, found[cpu])
    again = count(quantized, cpus[0])
    first = found[cpus[0]]["model"]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "onnxruntime": metadata.version("onnxruntime"),
        "cpus": found,
        "again": {
            "cpu": cpus[0],
            "same_products": again.model.compute == first["compute"],
            "total": abs(again.model.total / first["total"] - 1),
        },
    }


def _show(name: str, found: dict[str, Any]) -> None:
    int8, float32 = found["model"], found["original"]
    most = max(int8["compute"], key=lambda kind: int8["compute"][kind])
    print(
        f"{name:<20}{found['cpu']:<15}{float32['total'] / 1e6:>10.2f} M{int8['total'] / 1e6:>10.2f}"
        f" M{found['ratio']:>8.2f}x   {most:<8}{'yes' if int8['dot_products'] else 'no':>5}"
        f"{max(int8['spread'], float32['spread']):>10.3%}",
        flush=True,
    )


def main() -> None:
    """Build, count, print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu", action="append", help="default: " + ", ".join(CPUS))
    parser.add_argument(
        "--model", action="append", help="default: all that are here; the others' results are kept"
    )
    options = parser.parse_args()
    print("instructions of one inference, emulated; not time")
    print(
        f"{'':<20}{'':<15}{'fp32':>12}{'int8':>12}{'fewer':>9}   most    for int8    spread",
    )
    models: dict[str, Any] = {}
    for name, source, brought_by in MODELS:
        if options.model and name not in options.model:
            continue
        if not (ROOT / source).exists():
            print(f"{name:<20}not here: {brought_by}")
            continue
        with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
            models[name] = _count(Path(folder), name, source, options.cpu or list(CPUS))
    if options.model:
        models = {**record.read("instructions").get("models", {}), **models}
    record.write("instructions", unit="instructions, emulated; not time", models=models)


if __name__ == "__main__":
    main()
