"""What training for int8 buys over rounding alone, on Fashion-MNIST.

    .venv/bin/python benchmarks/aware.py

Needs Debian's package dataset-fashion-mnist. Each network is quantized to the nearest, with gptq,
and after `distill:aware=true`: one epoch on training pictures without labels, the float network as
the teacher. Quality is told on the 10,000 test pictures: top-1, agreement with the float network,
and the SNR against it. Results go to benchmarks/results/aware.json.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

import record

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(Path(__file__).parent)]

import fashion_resnet  # noqa: E402

from edgepack import data, graph  # noqa: E402
from edgepack.passes.distill import distill  # noqa: E402
from edgepack.passes.distill.options import DistillOptions  # noqa: E402
from edgepack.passes.module import ModuleContext  # noqa: E402
from edgepack.passes.quantize import QuantizeOptions, quantize  # noqa: E402
from edgepack.progress import SilentProgress  # noqa: E402
from edgepack.runtime.tensor import Tensor  # noqa: E402
from edgepack.stages.code import UserCode  # noqa: E402
from pair_safe import answers, snr_db  # noqa: E402

WEIGHTS = ROOT / "examples" / "weights" / "fashion-resnet.safetensors"
INPUTS = (Tensor("image", "float32", ("batch", 1, 28, 28)),)
OUTPUTS = (Tensor("scores", "float32", ("batch", 10), "scores"),)
NEAREST: dict[str, Any] = {"rounding": "nearest", "bias_correction": False}
# A network, the options of `quantize`, and the training pictures that are learnt from.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "perceptron, four-bit weights": ("perceptron", {"mode": "weights", "bits": 4}, 60000),
    "ResNet-20, weights of half range": ("resnet", {"range": "reduced"}, 12800),
    "ResNet-20": ("resnet", {"range": "full"}, 12800),
}


def perceptron() -> nn.Module:
    """784, 64, 64, 10, trained for eight epochs."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    images, labels = fashion_resnet.pictures("train")
    inputs = torch.from_numpy(fashion_resnet.standardise(images))
    wanted = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=8 * 469)
    for _ in range(8):
        for picked in torch.randperm(len(inputs)).split(128):
            loss = nn.functional.cross_entropy(network(inputs[picked]), wanted[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def resnet() -> nn.Module:
    """The ResNet-20 of manifests/fashion-resnet.toml."""
    from safetensors.torch import load_file

    network = fashion_resnet.model()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def exported(network: nn.Module) -> onnx.ModelProto:
    """As a build exports and simplifies it."""
    feed = {"image": np.zeros((1, 1, 28, 28), np.float32)}
    found = graph.export_module(network, INPUTS, feed, 18, ("scores",))
    return graph.simplify(found.model, feed).model


def trained(network: nn.Module, settings: Mapping[str, Any], count: int) -> nn.Module:
    """One epoch of `distill:aware=true`."""
    images, _ = fashion_resnet.pictures("train")
    with tempfile.TemporaryDirectory(prefix="edgepack-aware-") as name:
        folder = Path(name)
        np.savez(folder / "training.npz", image=fashion_resnet.standardise(images[:count]))
        (folder / "work").mkdir()
        context = ModuleContext(
            original=network,
            inputs=INPUTS,
            outputs=OUTPUTS,
            example={"image": np.zeros((1, 1, 28, 28), np.float32)},
            calibration=None,
            training=data.open_samples(str(folder / "training.npz"), INPUTS),
            gates={},
            code=UserCode(torch, (), "distill"),
            work=folder / "work",
            progress=SilentProgress(),
            quantize=QuantizeOptions(**settings, **NEAREST),
        )
        options = DistillOptions(aware=True, epochs=1)
        made: nn.Module = distill(copy.deepcopy(network), options, context).model
        return made


def main() -> None:
    """Train, quantize, judge, and write the table."""
    torch.set_num_threads(1)
    networks = {"perceptron": perceptron(), "resnet": resnet()}
    images, labels = fashion_resnet.pictures("test")
    feeds = [{"image": part} for part in np.split(fashion_resnet.standardise(images), 50)]
    calibration = data.open_samples(str(ROOT / "examples/fashion_resnet.py:calibration"), INPUTS)

    def scores(model: onnx.ModelProto) -> np.ndarray:
        return answers(model.SerializeToString(), feeds)[0].reshape(-1, 10)

    rows = {}
    for name, (which, settings, count) in CASES.items():
        original = exported(networks[which])
        real = scores(original)

        def judged(
            model: onnx.ModelProto, options: Mapping[str, Any], real: np.ndarray = real
        ) -> dict[str, Any]:
            made = quantize(model, calibration, QuantizeOptions(**options), SilentProgress())
            found = scores(made.model)
            return {
                "top1": round(float((found.argmax(1) == labels).mean()), 4),
                "agreement": round(float((found.argmax(1) == real.argmax(1)).mean()), 4),
                "snr_db": snr_db([real], [found]),
            }

        started = time.perf_counter()
        model = exported(trained(networks[which], settings, count))
        seconds = round(time.perf_counter() - started, 1)
        gptq = {"rounding": "gptq", "bias_correction": True}
        row = {
            "float": {"top1": round(float((real.argmax(1) == labels).mean()), 4)},
            "nearest": judged(original, {**settings, **NEAREST}),
            "gptq": judged(original, {**settings, **gptq}),
            "trained, nearest": judged(model, {**settings, **NEAREST}),
            "trained, gptq": judged(model, {**settings, **gptq}),
            "training": {"samples": count, "seconds": seconds},
        }
        rows[name] = row
        told = "  ".join(
            f"{kind} {found['snr_db']:.2f} dB {100 * found['agreement']:.2f} % "
            f"{100 * found['top1']:.2f} %"
            for kind, found in row.items()
            if "snr_db" in found
        )
        print(f"{name:34} {told}", flush=True)
    record.write("aware", rows=rows)


if __name__ == "__main__":
    main()
