"""What pair-safe weights cost against full range, and whether they give the same bits everywhere.

    make demo && .venv/bin/python benchmarks/pair_safe.py

Every int8 network of the tests, and of the examples those whose files are prepared, is quantized
three times from the same graph and the same calibration samples: at full range, pair-safe, and at
reduced range, the usual cure for the saturation of x86 without VNNI. Quality is the SNR against
the float graph on other samples. Each is then run on emulated CPUs without VNNI, against this
machine. Results go to benchmarks/results/pair-safe.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from edgepack import data, graph, source  # noqa: E402
from edgepack.device import Emulated, Local, ready  # noqa: E402
from edgepack.passes.quantize import QuantizeOptions, quantize  # noqa: E402
from edgepack.progress import SilentProgress  # noqa: E402
from edgepack.runtime.preprocess.picture import Picture  # noqa: E402
from edgepack.spec import manifest as manifests  # noqa: E402
from support import int8_nets, quantize_nets  # noqa: E402

RANGES = ("full", "pair-safe", "reduced")
CPUS = ("Haswell", "Skylake-Client")
# Samples that one network is judged on.
FEEDS = 1040
# Draws of the weights of `mixed`: what one of them costs is chance.
DRAWS = range(7, 19)
EXAMPLES = {
    "efficientnet-lite0": "demo/efficientnet-lite0.pth",
    "fashion-resnet": "examples/weights/fashion-resnet.safetensors",
    "silero-vad": "demo/silero-vad/silero-vad.safetensors",
    "tiny-bert": "demo/tiny-bert/model",
}

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A float graph, its calibration samples, and others, each a feed of its own."""

    model: onnx.ModelProto
    calibration: Any
    feeds: Sequence[Feed]
    options: Mapping[str, Any]


def make_network(
    model: onnx.ModelProto, name: str, draw: Callable[[int, int], np.ndarray]
) -> Network:
    """A network of the tests, with samples drawn for it."""
    calibration = quantize_nets.Arrays(**{name: draw(100, 1)})
    values = draw(400, 2)
    feeds = [{name: value[None]} for value in values]
    simplified = graph.simplify(model, {name: values[:1]}).model
    return Network(simplified, calibration, feeds, {})


def images(count: int, seed: int) -> np.ndarray:
    """As `quantize_nets.images`, by seed."""
    return quantize_nets.images(count, seed=seed)


def bright(count: int, seed: int) -> np.ndarray:
    """As `quantize_nets.bright`: the last of more, so that seeds differ."""
    return quantize_nets.bright(count * seed)[-count:]


OF_TESTS: dict[str, Callable[[], Network]] = {
    "mixed": lambda: make_network(int8_nets.mixed_onnx(), "image", int8_nets.pictures),
    "saturating": lambda: make_network(int8_nets.saturating_onnx(), "image", int8_nets.pictures),
    "residual": lambda: make_network(quantize_nets.residual(), "x", images),
    "gated": lambda: make_network(quantize_nets.gated(), "x", images),
    "stress": lambda: make_network(quantize_nets.stress(), "x", bright),
}


def example(name: str) -> Network:
    """An example model, with the samples and options of its manifest."""
    manifest = manifests.load(ROOT / "manifests" / f"{name}.toml")

    def place(text: str) -> str:
        file, colon, function = text.rpartition(":")
        return f"{manifest.folder / (file if colon else text)}{colon}{function if colon else ''}"

    arch = {"arch": place(manifest.arch), "arch_args": dict(manifest.arch_args)}
    found = source.load(ROOT / EXAMPLES[name], **(arch if manifest.arch else {}))
    inputs = manifest.inputs or found.inputs
    preprocessing = Picture(**manifest.pictures) if manifest.pictures else None

    def samples(where: str) -> Any:
        return data.open_samples(place(where), inputs, preprocessing=preprocessing)

    calibration = samples(manifest.calibration)
    feed = next(calibration.batches(1)).inputs
    names = tuple(manifest.output_kinds) or found.output_names
    if found.module is not None:
        exported = graph.export_module(found.module, inputs, feed, 18, names)
    else:
        exported = graph.export_program(found.program, 18, inputs, names)
    return Network(
        graph.simplify(exported.model, feed).model,
        calibration,
        spread([dict(b.inputs) for b in samples(manifest.evaluation).batches(1)], FEEDS),
        manifest.read_table("quantize"),
    )


def spread(feeds: Sequence[Feed], most: int) -> Sequence[Feed]:
    """At most so many of them, evenly spread."""
    return feeds[:: -(-len(feeds) // most)]


def answers(model: bytes, feeds: Sequence[Feed]) -> list[np.ndarray]:
    """Every output over all feeds, flat."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    columns = zip(*(session.run(None, dict(feed)) for feed in feeds), strict=True)
    return [np.concatenate([np.ravel(values) for values in column]) for column in columns]


def snr_db(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float | None:
    """Of the worst output; None where all are exact."""
    worst = float("inf")
    for real, measured in zip(wanted, found, strict=True):
        noise = np.square(real.astype(np.float64) - measured).sum()
        if noise:
            signal = np.square(real.astype(np.float64)).sum()
            worst = min(worst, float(10 * np.log10(signal / noise)))
    return None if worst == float("inf") else round(worst, 2)


RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_inputs()]
with numpy.load(sys.argv[2]) as stored:
    feeds = [{n: stored[f"{i}-{n}"] for n in names} for i in range(len(stored.files) // len(names))]
found = [session.run(None, feed) for feed in feeds]
columns = [numpy.concatenate([v.ravel() for v in column]) for column in zip(*found)]
numpy.savez(sys.argv[3], *columns)
"""


def on_device(device: Any, model: bytes, feeds: Sequence[Feed], folder: Path) -> list[np.ndarray]:
    """Every output over all feeds, flat, on this machine or an emulated CPU."""
    script, path, stored, out = (folder / n for n in ("run.py", "m.onnx", "f.npz", "o.npz"))
    script.write_text(RUN)
    path.write_bytes(model)
    np.savez(stored, **{f"{i}-{n}": v for i, feed in enumerate(feeds) for n, v in feed.items()})
    done = device.run(str(script), str(path), str(stored), str(out))
    if done.status:
        raise SystemExit(f"{device.name}: {done.stderr}")
    with np.load(out) as found:
        return [found[name] for name in found.files]


def emulated(
    models: Mapping[str, bytes], feeds: Sequence[Feed], cpus: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By CPU and range: whether the bits are this machine's, and how far off they are."""
    rows: dict[str, dict[str, Any]] = {cpu: {} for cpu in cpus}
    with (
        tempfile.TemporaryDirectory(prefix="edgepack-pairs-") as name,
        Local(runs_bundle=True) as host,
    ):
        folder = Path(name)
        wanted = {span: on_device(host, model, feeds, folder) for span, model in models.items()}
        for cpu in cpus:
            with Emulated(cpu, runs_bundle=True) as device:
                for span, model in models.items():
                    found = on_device(device, model, feeds, folder)
                    same = all(map(np.array_equal, wanted[span], found))
                    rows[cpu][span] = {"same_bits": same, "snr_db": snr_db(wanted[span], found)}
    return rows


def judge(network: Network) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The SNR of every range, and the models."""
    real = answers(network.model.SerializeToString(), network.feeds)
    row: dict[str, Any] = {"samples": len(network.feeds)}
    models = {}
    for span in RANGES:
        options = QuantizeOptions(**{**network.options, "range": span})
        result = quantize(network.model, network.calibration, options, SilentProgress())
        models[span] = result.model.SerializeToString()
        row[span] = {"snr_db": snr_db(real, answers(models[span], network.feeds))}
        if span == "pair-safe":
            row[span].update(result.details["pair_safe"])
            row["layers"] = result.details["layers_quantized"]
            row["integer_only"] = result.details["integer_only"]
    row["gap_db"] = gap(row)
    return row, models


def gap(row: Mapping[str, Any]) -> float:
    """What the pair limit costs, in dB of SNR; negative where chance was on its side."""
    return round(row["full"]["snr_db"] - row["pair-safe"]["snr_db"], 2)


def draws() -> dict[str, Any]:
    """The cost over several draws of one network's weights."""
    gaps = []
    for seed in DRAWS:
        network = make_network(int8_nets.mixed_onnx(seed), "image", int8_nets.pictures)
        gaps.append(judge(network)[0]["gap_db"])
    return {
        "draws": len(gaps),
        "gap_db_mean": round(statistics.mean(gaps), 2),
        "gap_db_deviation": round(statistics.stdev(gaps), 2),
        "gap_db": gaps,
    }


def networks(chosen: Sequence[str]) -> Iterator[tuple[str, Network]]:
    """Those that were asked for and whose files are there."""
    for name in chosen:
        if name in OF_TESTS:
            yield name, OF_TESTS[name]()
        elif (ROOT / EXAMPLES[name]).exists():
            yield name, example(name)
        else:
            print(f"{name}: left out, {EXAMPLES[name]} is not prepared")


def main() -> None:
    """Quantize, judge, emulate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = [*OF_TESTS, *EXAMPLES]
    parser.add_argument("networks", nargs="*", default=everything)
    parser.add_argument("--emulated", type=int, default=3, help="samples on each emulated CPU")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(everything):
        parser.error(f"no network is named {', '.join(sorted(unknown))}")
    faults = {cpu: fault for cpu in CPUS if (fault := ready(cpu)) is not None}
    for fault in faults.values():
        print(f"{fault.what}: {fault.hint}")
    print(
        f"{'':20} {'full':>7} {'pair-safe':>10} {'gap':>6} {'reduced':>8}  without VNNI: "
        "full, pair-safe"
    )
    rows = {}
    for name, network in networks(options.networks):
        row, models = judge(network)
        row["emulated"] = emulated(
            {span: models[span] for span in ("full", "pair-safe")},
            spread(network.feeds, options.emulated),
            [cpu for cpu in CPUS if cpu not in faults],
        )
        rows[name] = row
        show(name, row)
    found = draws()
    print(f"mixed, {found['draws']} draws of its weights: gap {found['gap_db_mean']} dB on "
          f"average, standard deviation {found['gap_db_deviation']}")  # fmt: skip
    record.write("pair-safe", rows=rows, mixed=found)


def show(name: str, row: Mapping[str, Any]) -> None:
    """One line of the table."""
    told = []
    for span in ("full", "pair-safe"):
        found = [row["emulated"][cpu][span] for cpu in row["emulated"]]
        worst = min((each["snr_db"] for each in found if not each["same_bits"]), default=None)
        told.append("same bits" if worst is None else f"{worst:.1f} dB")
    print(
        f"{name:20} {row['full']['snr_db']:7.2f} {row['pair-safe']['snr_db']:10.2f} "
        f"{row['gap_db']:6.2f} {row['reduced']['snr_db']:8.2f}  {', '.join(told)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
