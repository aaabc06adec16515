"""What equalization buys: channels of like size before the ranges of int8 are measured.

    make demo && .venv/bin/python benchmarks/equalize.py

Every example whose files are prepared is quantized from the same graph and the same calibration
samples with each kind of `equalize`, at several `alpha`, once with the default rounding (gptq, with
the bias correction) and once to the nearest without it. Quality is the SNR of the worst output
against the float graph on other samples, and the share of them on which both decide alike. Results
go to benchmarks/results/equalize.json; rows of networks that are not asked for stay there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import record

sys.path.insert(0, str(Path(__file__).parent))

import pair_safe
from edgepack.passes.quantize import QuantizeOptions, quantize
from edgepack.progress import SilentProgress
from pair_safe import EXAMPLES, ROOT, Network, snr_db, spread

KINDS = ("cross-layer", "smooth", "both")
ALPHAS = (0.25, 0.5, 0.75)
DEFAULT = 0.5
ROUNDINGS: dict[str, dict[str, Any]] = {
    "gptq": {},
    "nearest": {"rounding": "nearest", "bias_correction": False},
}


def decisions(answers: Sequence[np.ndarray], feeds: int) -> np.ndarray:
    """What the first output decides on every sample: the best score, or a single one over 0.5."""
    scores = answers[0].reshape(feeds, -1)
    found = scores[:, 0] > 0.5 if scores.shape[1] == 1 else scores.argmax(1)
    return np.asarray(found)


def judge(network: Network, real: Sequence[np.ndarray], options: Mapping[str, Any]) -> Any:
    """SNR, agreement and figures of one quantization."""
    settings = QuantizeOptions(**{**network.options, **options})
    result = quantize(network.model, network.calibration, settings, SilentProgress())
    found = pair_safe.answers(result.model.SerializeToString(), network.feeds)
    count = len(network.feeds)
    same = decisions(real, count) == decisions(found, count)
    row = {"snr_db": snr_db(real, found), "agreement": round(float(same.mean()), 4)}
    return row, result.details["equalize"]


def row_of(network: Network) -> dict[str, Any]:
    """Every kind at every alpha."""
    real = pair_safe.answers(network.model.SerializeToString(), network.feeds)
    row: dict[str, Any] = {"samples": len(network.feeds)}
    for rounding, settings in ROUNDINGS.items():
        row[rounding] = {"none": judge(network, real, settings)[0]}
        for kind in KINDS:
            for alpha in ALPHAS if kind == "both" else (DEFAULT,):
                name = kind if alpha == DEFAULT else f"{kind} {alpha:g}"
                options = {**settings, "equalize": kind, "alpha": alpha}
                row[rounding][name], figures = judge(network, real, options)
                row.setdefault("figures", {})[name] = figures
    return row


def show(name: str, row: Mapping[str, Any]) -> None:
    """Two lines of the table."""
    for rounding in ROUNDINGS:
        found = row[rounding]
        told = "  ".join(f"{kind} {each['snr_db']:.2f}" for kind, each in found.items())
        print(f"{name:20} {rounding:8} {told}", flush=True)


def main() -> None:
    """Quantize, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[*EXAMPLES])
    parser.add_argument("--samples", type=int, default=pair_safe.FEEDS, help="judged on, at most")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(EXAMPLES):
        parser.error(f"no example is named {', '.join(sorted(unknown))}")
    rows = record.read("equalize").get("rows", {})
    for name in options.networks:
        if not (ROOT / EXAMPLES[name]).exists():
            print(f"{name}: left out, {EXAMPLES[name]} is not prepared")
            continue
        network = pair_safe.example(name)
        feeds = spread(network.feeds, options.samples)
        network = Network(network.model, network.calibration, feeds, network.options)
        rows[name] = row_of(network)
        show(name, rows[name])
    record.write("equalize", rows=rows)


if __name__ == "__main__":
    main()
