"""The form of every result: what was measured, when, on what, and with which versions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.metrics.parts import find_parts
from edgepack.runtime.device.machine import describe
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.tensor import Tensor

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).parent / "results"
PACKAGES = ("onnxruntime", "onnx", "torch")
VNNI = {"avx512_vnni", "avx_vnni"}


def write(name: str, **measured: Any) -> None:
    """Write results/NAME.json, and say so.

    Args:
        name: of the benchmark.
        measured: what is JSON already, under its own keys.
    """
    here = describe()
    document = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": {key: value for key, value in here.items() if key != "isa"},
        "vnni": bool(VNNI & set(here["isa"] or ())),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        **measured,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


def scores_parity(batches: Sequence[np.ndarray]) -> Parity:
    """Return what compares class scores, [samples, classes], with these of the original."""
    tensor = Tensor("scores", str(batches[0].dtype), ("batch", batches[0].shape[1]), "scores")
    return Parity(tensor, find_parts(tensor, batches))


def read(name: str) -> dict[str, Any]:
    """What an earlier run wrote; empty where there was none."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found
