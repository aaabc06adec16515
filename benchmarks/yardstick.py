"""The SNR about zero beside the SNR that the gates hold, on every network of the repository.

    make demo && .venv/bin/python benchmarks/yardstick.py

Every network is quantized as its profile does, without repair, and run on samples that did not
calibrate it. "About zero" takes an output as one long vector and its offset as signal; the gates
hold the worst part's variance over the samples against its error (edgepack/metrics/parts.py). The
last rows are of networks built so that int8 collapses, which the first figure does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime

import pair_safe
import record
from edgepack.graph.outputs import state_outputs
from edgepack.graph.signature import signature
from edgepack.metrics.parts import find_parts
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.progress import SilentProgress
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.tensor import Tensor
from pair_safe import EXAMPLES, OF_TESTS, ROOT, Network, example, images, make_network
from support import output_nets

COLLAPSING: dict[str, Callable[[], Network]] = {
    "detector, collapsed": lambda: make_network(output_nets.detector(), "x", images),
    "offset, collapsed": lambda: make_network(output_nets.offset_head(), "x", images),
}


def answer(model: bytes, network: Network) -> list[list[np.ndarray]]:
    """Return the outputs, feed by feed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, dict(feed)) for feed in network.feeds]


def about_zero(reference: list[np.ndarray], measured: list[np.ndarray]) -> float:
    """Return the SNR of an output about zero, in dB."""
    pairs = [(a.astype(np.float64), b) for a, b in zip(reference, measured, strict=True)]
    error = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return float(10 * np.log10(sum(float(np.square(a).sum()) for a, _ in pairs) / error))


def rows(name: str, network: Network) -> Iterator[dict[str, Any]]:
    """Yield one row for every float output of a network."""
    options = QuantizeOptions(**dict(network.options))
    result = quantize(network.model, network.calibration, options, SilentProgress())
    original = answer(network.model.SerializeToString(), network)
    measured = answer(result.model.SerializeToString(), network)
    inputs = signature(network.model)[0]
    stated = state_outputs(network.model, inputs, dict(network.feeds[0]))
    for i, known in enumerate(signature(stated)[1]):
        tensor = Tensor(known.name, str(original[0][i].dtype), known.shape)
        column = [outputs[i] for outputs in original]
        if not tensor.dtype.startswith("float"):
            continue
        parity = Parity(tensor, find_parts(tensor, column))
        for real, other in zip(column, (outputs[i] for outputs in measured), strict=True):
            parity.update(real, other)
        metrics = parity.result()
        yield {
            "network": name,
            "output": tensor.name,
            "samples": len(column),
            "about_zero_db": round(about_zero(column, [outputs[i] for outputs in measured]), 2),
            "snr_db": round(metrics["snr_db"], 2),
            "worst_part": metrics["part"],
            "parts": [
                {"part": part["part"], "snr_db": round(part["snr_db"], 2)}
                for part in metrics["parts"]
            ],
        }


def main() -> None:
    """Print the table, and write it to results/."""
    makers: dict[str, Callable[[], Network]] = dict(OF_TESTS)
    missing = []
    for name, path in EXAMPLES.items():
        if (ROOT / path).exists():
            makers[name] = lambda name=name: example(name)
        else:
            missing.append(name)
    table = []
    print(f"{'network':22} {'output':14} {'about zero':>10} {'gated':>8}  worst part")
    for name, make in {**makers, **COLLAPSING}.items():
        for row in rows(name, make()):
            table.append(row)
            print(
                f"{row['network']:22} {row['output'][:14]:14} {row['about_zero_db']:10.2f} "
                f"{row['snr_db']:8.2f}  {row['worst_part']}",
                flush=True,
            )
    if missing:
        print(f"not prepared here: {', '.join(missing)}")
    record.write("yardstick", feeds=pair_safe.FEEDS, rows=table)


if __name__ == "__main__":
    main()
