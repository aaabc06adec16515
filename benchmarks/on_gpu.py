"""What a GPU makes of the bundles: is it what the build host's CPU computed, and how fast is it?

    .venv/bin/python benchmarks/on_gpu.py

Every model that is here (the Fashion ResNet always, the others after `make demo` and their own
scripts) is built for cuda-fp16, verified on the GPU through its own loader, and timed beside the
same network in float32 in onnxruntime's CUDA provider and in PyTorch: eager and compiled, in
float32 and in fp16. Each is timed in a process of its own, in turns, from numpy arrays in the
computer's memory to numpy arrays there. Results go to benchmarks/results/gpu-NAME.json.

Where there is no GPU it says so and does nothing; tests/gpu runs the same functions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.engines import CUDA
from edgepack.runtime.bundle.index import read_index
from edgepack.runtime.commands.bench import percentiles
from edgepack.spec import manifest as manifests

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "tensorrt", "torch")
# The fewest of a turn.
QUERIES = 10
# Of PyTorch: its name here, whether it is compiled, whether in fp16.
TORCH = (
    ("PyTorch eager", False, False),
    ("torch.compile", True, False),
    ("PyTorch eager, fp16", False, True),
    ("torch.compile, fp16", True, True),
)


@dataclass(frozen=True)
class Case:
    """A model to build and to measure.

    Attributes:
        name: of it.
        model: its file or folder.
        manifest: of it; None where the options say all.
        options: further options of `edgepack build`.
        arch: the factory of a state dict.
        arch_args: its arguments.
    """

    name: str
    model: Path
    manifest: Path | None = None
    options: Sequence[str] = ()
    arch: str = ""
    arch_args: Mapping[str, Any] = field(default_factory=dict)


def examples() -> list[Case]:
    """The example models whose files are here."""
    places = {
        "fashion-resnet": "examples/weights/fashion-resnet.safetensors",
        "efficientnet-lite0": "demo/efficientnet-lite0.pth",
        "tiny-bert": "demo/tiny-bert/model",
        "silero-vad": "demo/silero-vad/silero-vad.safetensors",
    }
    found = []
    for name, place in places.items():
        path = ROOT / "manifests" / f"{name}.toml"
        stated = manifests.load(path)
        arch = str(path.parent / stated.arch) if stated.arch else ""
        if (ROOT / place).exists():
            found.append(Case(name, ROOT / place, path, (), arch, stated.arch_args))
    return found


def of_arrays(name: str, model: Any, samples: np.ndarray, folder: Path) -> Case:
    """An ONNX model with one input x, and the samples that calibrate and judge it, as files."""
    import onnx

    onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", x=samples)
    options = ("--calibration", str(folder / f"{name}.npz"))
    return Case(name, folder / f"{name}.onnx", options=options)


def why_not() -> str:
    """Why nothing can run on a GPU here; "" where it can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no NVIDIA GPU"
    # Its CUDA libraries are there once torch is.
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return (
            f"onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider but "
            f"{', '.join(providers)}: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    return ""


def built(case: Case, target: str, folder: Path, *options: str) -> Path:
    """The bundle of a case for a target, its gates held by this host's CPU."""
    chain = "-".join(options).strip("-") or "default"
    output = folder / f"{case.name}-{target}-{chain}.edgepack"
    stated = ["--manifest", str(case.manifest)] if case.manifest else []
    run(
        [sys.executable, "-m", "edgepack", "build", str(case.model), "--target", target,
         "--latency", "none", "--allow-unverified", "--output", str(output), *stated,
         *case.options, *options]
    )  # fmt: skip
    return output


def run(command: Sequence[str]) -> str:
    """What a command wrote to stdout. Raises RuntimeError with what it said where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()[-3000:]}")
    return done.stdout


def verified(bundle: Path) -> dict[str, Any]:
    """What `verify` finds here: the engine that ran, and each output against the build host's.

    Raises RuntimeError where it missed a gate.
    """
    # On a CPU the fallback runs, whose verdict is UNVERIFIED; the callers compare the variant.
    verdict = json.loads(
        run([sys.executable, str(bundle), "verify", "--json", "--allow-unverified"])
    )
    outputs = verdict["fidelity"]["outputs"]
    return {
        "variant": verdict["variant"],
        "device": verdict["device"],
        "fidelity_snr_db": {name: found["snr_db"] for name, found in outputs.items()},
        "quality_snr_db": {
            name: found["snr_db"] for name, found in verdict["quality"]["outputs"].items()
        },
    }


def latencies(
    case: Case,
    bundle: Path,
    fp32: Path,
    device: str,
    rounds: int,
    seconds: float,
    in_torch: Sequence[tuple[str, bool, bool]] = TORCH,
) -> dict[str, dict[str, Any]]:
    """p50 and p90 in ms of every contender, batch 1, in turns.

    Args:
        case: what is measured.
        bundle: of it, in fp16; its first reference sample is fed to all.
        fp32: an ONNX file of the same network in float32.
        device: "cuda" or "cpu".
        rounds: turns of each.
        seconds: of each turn.
        in_torch: which of PyTorch's.
    """
    turn = [
        sys.executable,
        str(bundle),
        "bench-turn",
        f"--queries={QUERIES}",
        f"--seconds={seconds}",
    ]
    on_gpu = ["--cuda"] if device == "cuda" else []
    commands = {
        "edgepack": turn,
        "onnxruntime fp32": [*turn, f"--against={fp32}", *on_gpu],
    }
    for name, compiled, half in in_torch:
        options = {"device": device, "compile": compiled, "half": half, "seconds": seconds,
                   "model": str(case.model), "arch": case.arch, "bundle": str(bundle),
                   "arch_args": dict(case.arch_args)}  # fmt: skip
        commands[name] = [sys.executable, str(Path(__file__).resolve()), "--turn",
                          json.dumps(options)]  # fmt: skip
    times: dict[str, list[list[int]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(json.loads(run(command))["ns"])
    first = times["edgepack"]
    return {
        name: {
            **percentiles([ns for turn in turns for ns in turn]),
            # By turn, so that a clock that drifts is the same for both.
            "times_edgepack": statistics.median(
                statistics.median(other) / statistics.median(own)
                for other, own in zip(turns, first, strict=True)
            ),
        }
        for name, turns in times.items()
    }


def torch_turn(options: Mapping[str, Any]) -> dict[str, Any]:
    """One turn of PyTorch, in this process, on the first reference sample of a bundle."""
    import torch

    from edgepack import source
    from edgepack.runtime.commands.verify import reference_feeds

    arch = options["arch"] or None
    search = (Path(arch.rpartition(":")[0]).parent,) if arch else ()
    found = source.load(
        Path(options["model"]), arch=arch, arch_args=options["arch_args"], search=search
    )
    if found.module is None:
        raise ValueError(f"{options['model']} holds no torch module")
    with Archive(options["bundle"]) as archive:
        index = read_index(archive)
        feed = next(reference_feeds(archive, index))
    module = found.module.to(options["device"])
    if options["half"]:
        module = module.half()
    if options["compile"]:
        module = torch.compile(module)

    def tensor(name: str) -> Any:
        value = torch.from_numpy(feed[name]).to(options["device"])
        return value.half() if options["half"] and value.is_floating_point() else value

    def call() -> None:
        outputs = module(*(tensor(value.name) for value in index.inputs))
        # The copy back waits for the GPU.
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            output.cpu().numpy()

    times: list[int] = []
    clock = time.perf_counter_ns
    with torch.inference_mode():
        for _ in range(3):
            call()
        end = clock() + int(options["seconds"] * 1e9)
        while len(times) < QUERIES or clock() < end:
            started = clock()
            call()
            times.append(clock() - started)
    return {"ns": times}


def measured(
    case: Case,
    target: str,
    device: str,
    *,
    rounds: int = 3,
    seconds: float = 2.0,
    in_torch: Sequence[tuple[str, bool, bool]] = TORCH,
) -> dict[str, Any]:
    """Build a case, verify it and time it here.

    Args:
        case: what is measured.
        target: the profile.
        device: "cuda" or "cpu", for the contenders; the bundle takes what it finds.
        rounds: turns of each contender.
        seconds: of each turn.
        in_torch: which of PyTorch's contenders.
    """
    with tempfile.TemporaryDirectory(prefix="edgepack-gpu-") as name:
        folder = Path(name)
        bundle = built(case, target, folder)
        original = built(case, target, folder, "--chain", "none")
        fp32 = folder / "original.onnx"
        with Archive(str(original)) as archive:
            fp32.write_bytes(archive.read(read_index(archive).model))
        with Archive(str(bundle)) as archive:
            size = len(archive.read(read_index(archive).model))
        return {
            "name": case.name,
            "target": target,
            "bytes_ratio": size / fp32.stat().st_size,
            **verified(bundle),
            "latency_ms": latencies(case, bundle, fp32, device, rounds, seconds, in_torch),
        }


def hardware() -> dict[str, str]:
    """The GPU that torch sees, by name, capability and driver's CUDA; the versions beside it."""
    import torch

    gpu = {}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        gpu = {
            "gpu": torch.cuda.get_device_name(),
            "compute_capability": f"{major}.{minor}",
            "cuda_of_torch": str(torch.version.cuda),
        }
    return {**gpu, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def written(rows: Sequence[Mapping[str, Any]], folder: Path, tag: str = "") -> Path:
    """Write results with their date, hardware and versions to gpu-TAG.json in a folder."""
    here = hardware()
    label = re.sub(r"[^a-z0-9]+", "-", (tag or here.get("gpu", "none")).lower()).strip("-")
    path = folder / f"gpu-{label}.json"
    document = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": here,
        "models": list(rows),
    }
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return path


def table(row: Mapping[str, Any]) -> str:
    """One model's results in lines."""
    lines = [
        f"{row['name']} for {row['target']} in {row['variant']['engine']}: fidelity "
        f"{row['fidelity_snr_db']} dB, quality {row['quality_snr_db']} dB, "
        f"{row['bytes_ratio']:.1%} of the bytes"
    ]
    lines += [
        f"  {name:24} p50 {found['p50']:8.3f} ms   {found['times_edgepack']:.2f}x"
        for name, found in row["latency_ms"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure every example on the GPU that is here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(torch_turn(json.loads(options.turn))))
        return
    reason = why_not()
    if reason:
        print(f"nothing was measured: {reason}")
        return
    rows = []
    for case in examples():
        row = measured(case, "cuda-fp16", "cuda", rounds=options.rounds, seconds=options.seconds)
        if row["variant"]["engine"] != CUDA:
            raise RuntimeError(f"{case.name} ran in {row['variant']['engine']}")
        rows.append(row)
        print(table(row), flush=True)
    print(written(rows, RESULTS))


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    main()
