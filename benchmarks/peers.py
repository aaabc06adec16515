"""Networks that differ in kind: edgepack's bundle beside what other tools make of each.

    python benchmarks/networks/write.py build/networks      (its docstring names the packages)
    python benchmarks/peers.py [--network mlp] [--peer "NNCF, default"] [--rounds 5]

Every model is made once, kept in --work, and run in a process of its own, in turns, on one thread
and on two. NNCF needs `pip install nncf openvino` (--nncf-python), PyTorch an environment with the
version of torch that wrote the networks (--torch-python). What fails is a row with its error. Each
network's results are written as soon as they are there: to benchmarks/results/peers.json, so that
a run can be interrupted; networks that are not named keep theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import record

FOLDER = Path(__file__).parent / "rivals"
THREADS = (1, 2)
# Bounds of the target cpu-fbgemm: a peer below them does not count as a rival.
SNR_DB, AGREEMENT = 10.0, 0.97
# Outputs whose largest value is a decision.
DECISIONS = ("logits", "classes", "pitch", "softmax")
EDGEPACK, FP32 = "edgepack", "onnxruntime, fp32"
# Seconds to make, or to answer with, a model.
LIMIT = 600


@dataclass(frozen=True)
class Peer:
    """Way to run a network.

    Attributes:
        maker: function of rivals/prepare.py; "" for edgepack's own command.
        engine: as rivals/turn.py names it.
        suffix: of the model's file.
        python: environment: "own", "nncf" or "torch".
    """

    maker: str
    engine: str
    suffix: str = ".onnx"
    python: str = "own"


PEERS = {
    FP32: Peer("copy", "onnxruntime"),
    EDGEPACK: Peer("", "edgepack", ".edgepack"),
    "quantize_static, its defaults": Peer("quantize_by_defaults", "onnxruntime"),
    "quantize_static, u8s8 per channel": Peer("quantize_best", "onnxruntime"),
    "quantize_dynamic, its defaults": Peer("quantize_dynamic", "onnxruntime"),
    "OpenVINO, f32": Peer("copy", "openvino-f32"),
    "OpenVINO, bf16": Peer("copy", "openvino-bf16"),
    "NNCF, default": Peer("nncf_default", "openvino-f32", ".xml", "nncf"),
    "NNCF, mixed": Peer("nncf_mixed", "openvino-f32", ".xml", "nncf"),
    "NNCF, accuracy control": Peer("nncf_accuracy", "openvino-f32", ".xml", "nncf"),
    "PyTorch eager": Peer("copy_program", "torch", ".pt2", "torch"),
    "torch.compile": Peer("copy_program", "torch-compile", ".pt2", "torch"),
}
"""Paths of each tool; `its defaults`, `default` and the float ones are default paths."""


class Bench:
    """One run: environments, folders and lengths.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        pythons = {"nncf": options.nncf_python, "torch": options.torch_python}
        self.pythons = {name: path or sys.executable for name, path in pythons.items()}
        self.pythons["own"] = sys.executable

    def prepare(self, name: str, peer: Peer, network: Path) -> Path:
        """Return the peer's model of a network, made now or earlier."""
        slug = "".join(letter if letter.isalnum() else "-" for letter in name)
        target = self.options.work / network.name / f"{slug}{peer.suffix}"
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        if peer.maker:
            # OpenVINO names the weights after the model, so both stay in the folder of their own.
            script = [self.pythons[peer.python], str(FOLDER / "prepare.py"), peer.maker]
            self._call([*script, str(network), str(target)], target)
        else:
            command = [sys.executable, "-m", "edgepack", "build", str(network / "model.onnx")]
            for kind in ("calibration", "evaluation"):
                command += [f"--{kind}", str(network / f"{kind}.npz")]
            command += ["--target", "cpu-fbgemm", "--no-emulate", "--allow-unverified"]
            self._call([*command, "--quiet", "--output", str(target)], target)
        return target

    def _call(self, command: list[str], target: Path) -> None:
        try:
            self._run(command)
        except RuntimeError:
            target.unlink(missing_ok=True)
            raise

    def _run(self, command: list[str]) -> str:
        """Return what a command prints; raise RuntimeError with the first line of its error."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {LIMIT} s") from None
        if done.returncode:
            raise RuntimeError(find_error(done.stderr) or f"exit status {done.returncode}")
        return done.stdout

    def turn(self, peer: Peer, model: Path, network: Path, threads: int, seconds: float) -> Any:
        """Return nanoseconds of calls; with no seconds the answers to the evaluation samples."""
        answers = model.with_name(f"{model.stem}.answers.npy")
        script = [self.pythons[peer.python], str(FOLDER / "turn.py"), peer.engine, str(model)]
        samples = str(network / "evaluation.npz")
        printed = self._run([*script, samples, str(threads), str(seconds), str(answers)])
        if seconds:
            return json.loads(printed.splitlines()[-1])["ns"]
        return np.load(answers)


def find_error(text: str) -> str:
    """Return the line that names the error: the last of a traceback, else the first of edgepack."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error["):
            return line[:200]
    for line in reversed(lines):
        head = line.split(":")[0]
        if head.endswith(("Error", "Exception", "Fail", "NotImplemented")) and " " not in head:
            return line[:200]
    return lines[-1][:200] if lines else ""


def judge(reference: np.ndarray, answers: np.ndarray, decisions: bool) -> dict[str, Any]:
    """Return the SNR in dB and, for decisions, the share that agree."""
    noise = float(np.square(answers.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    quality: dict[str, Any] = {"snr_db": min(10 * float(np.log10(signal / max(noise, 1e-30))), 150)}
    if decisions:
        same = answers.argmax(-1) == reference.argmax(-1)
        quality["agreement"] = float(np.mean(same))
    return quality


def count_bytes(model: Path) -> int:
    """Return the size of a model; of a bundle its ONNX, of OpenVINO's two files both."""
    if model.suffix == ".edgepack":
        from edgepack.runtime.bundle.archive import Archive
        from edgepack.runtime.bundle.index import read_index

        with Archive(str(model)) as archive:
            return len(archive.read(read_index(archive).model))
    size = model.stat().st_size
    weights = model.with_suffix(".bin")
    return size + (weights.stat().st_size if model.suffix == ".xml" else 0)


def measure(bench: Bench, network: Path, names: list[str]) -> dict[str, Any]:
    """Make, judge and time every peer on one network; return its rows."""
    import onnx

    output = onnx.load(network / "model.onnx", load_external_data=False).graph.output[0].name
    rows: dict[str, Any] = {}
    models: dict[str, Path] = {}
    reference = None
    for name in names:
        peer = PEERS[name]
        try:
            model = bench.prepare(name, peer, network)
            answers = bench.turn(peer, model, network, 2, 0)
            reference = answers if name == FP32 else reference
            row = judge(reference, answers, output.startswith(DECISIONS))
            rows[name] = {"bytes": count_bytes(model), **row}
            models[name] = model
        except (RuntimeError, OSError, ValueError) as error:
            rows[name] = {"error": str(error)}
        print(f"  {name}: {rows[name]}", flush=True)
    if bench.options.rounds:
        _time(bench, network, models, rows)
    return rows


def _time(bench: Bench, network: Path, models: dict[str, Path], rows: dict[str, Any]) -> None:
    """Add p50 and ratios to the rows: rounds of one turn each, in alternating order."""
    for threads in THREADS:
        rounds: list[dict[str, float]] = []
        for i in range(bench.options.rounds):
            p50 = {}
            for name in list(models) if i % 2 == 0 else list(models)[::-1]:
                try:
                    times = bench.turn(
                        PEERS[name], models[name], network, threads, bench.options.seconds
                    )
                except RuntimeError as error:
                    rows[name]["error"] = str(error)
                    models.pop(name)
                    continue
                p50[name] = statistics.median(times) / 1e6
            rounds.append(p50)
        for name in models:
            ratios = sorted(p50[name] / p50[FP32] for p50 in rounds)
            rows[name][f"threads_{threads}"] = {
                "p50_ms": statistics.median(p50[name] for p50 in rounds),
                "against_fp32": statistics.median(ratios),
                "spread": [ratios[0], ratios[-1]],
            }


def holds(row: dict[str, Any]) -> bool:
    """Return True for a row that was timed and is within the quality gates."""
    if "error" in row or "threads_2" not in row:
        return False
    return row["snr_db"] >= SNR_DB and row.get("agreement", 1) >= AGREEMENT


def describe_failure(row: dict[str, Any]) -> str:
    """Say why a row does not hold: its error, or the quality that is below the gates."""
    if "error" in row:
        return f"failed: {row['error']}"
    agreement = row.get("agreement")
    share = "" if agreement is None else f", {agreement:.1%} of decisions agree"
    return f"misses {SNR_DB:g} dB or {AGREEMENT:.0%} agreement: {row['snr_db']:.1f} dB{share}"


def find_losses(networks: dict[str, Any]) -> list[str]:
    """Return a sentence for every network and number of threads on which a peer is better."""
    losses = []
    for network, rows in networks.items():
        own = rows.get(EDGEPACK, {"error": "not measured"})
        rivals = {name: row for name, row in rows.items() if name != EDGEPACK and holds(row)}
        if not holds(own):
            losses.append(f"{network}: edgepack {describe_failure(own)}")
            continue
        for threads in THREADS:
            key = f"threads_{threads}"
            best = min(rivals, key=lambda name: rivals[name][key]["p50_ms"])
            ratio = own[key]["p50_ms"] / rivals[best][key]["p50_ms"]
            if ratio > 1:
                losses.append(f"{network}: {ratio:.2f}x the p50 of {best} on {threads} threads")
        smallest = min(rivals, key=lambda name: rivals[name]["bytes"])
        ratio = own["bytes"] / rivals[smallest]["bytes"]
        if ratio > 1:
            losses.append(f"{network}: {ratio:.2f}x the bytes of {smallest}")
    return losses


def compute_means(networks: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the geometric mean of each peer's p50 over edgepack's, on the networks of both."""
    means: dict[str, dict[str, float]] = {}
    for name in PEERS:
        for threads in THREADS:
            key = f"threads_{threads}"
            ratios = []
            for rows in networks.values():
                if key in rows.get(name, {}) and key in rows.get(EDGEPACK, {}):
                    ratios.append(rows[name][key]["p50_ms"] / rows[EDGEPACK][key]["p50_ms"])
            if ratios and name != EDGEPACK:
                mean = {"ratio": statistics.geometric_mean(ratios), "networks": len(ratios)}
                means.setdefault(name, {})[key] = mean  # type: ignore[assignment]
    return means


def main() -> None:
    """Measure the networks that are named, or all, and write the results after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=record.ROOT / "build" / "networks")
    parser.add_argument("--work", type=Path, default=record.ROOT / "build" / "peers")
    parser.add_argument("--network", action="append", help="repeatable; default: all in the zoo")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="repeatable")
    parser.add_argument("--rounds", type=int, default=5, help="0 prepares and judges")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--nncf-python", default="", help="interpreter with nncf and openvino")
    parser.add_argument("--torch-python", default="", help="interpreter with PyTorch")
    options = parser.parse_args()
    os.environ["OPENVINO_TELEMETRY_DISABLE"] = "1"
    bench = Bench(options)
    named = [FP32, EDGEPACK, *(options.peer or PEERS)]
    names = [name for name in PEERS if name in named]
    networks: dict[str, Any] = record.read("peers").get("networks", {})
    for folder in sorted(options.zoo.glob("*/README")):
        name = folder.parent.name
        if options.network and name not in options.network:
            continue
        print(f"{name}: {folder.read_text().strip()}", flush=True)
        rows = measure(bench, folder.parent, names)
        kind, weights = folder.read_text().split(";")[:2]
        networks[name] = {**networks.get(name, {}), **rows}
        kinds = {**record.read("peers").get("kinds", {}), name: f"{kind}, {weights.strip()}"}
        if options.rounds:
            summary = {"means": compute_means(networks), "losses": find_losses(networks)}
            load = {**record.read("peers").get("load", {}), name: os.getloadavg()[0]}
            record.write("peers", kinds=kinds, load=load, **summary, networks=networks)
    for line in find_losses(networks):
        print(f"lost: {line}")


if __name__ == "__main__":
    main()
