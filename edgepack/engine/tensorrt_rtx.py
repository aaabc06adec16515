"""Check with TensorRT-RTX, an optional package, that TensorRT parses an ONNX, without a GPU.

TensorRT-RTX has the parser and the builder of the other TensorRTs, and can build for a GPU that is
absent. The engine is discarded, since no other TensorRT loads it; no kernel runs. As native code
that reads an untrusted model, it runs in a separate process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgepack import files
from edgepack.errors import EngineError, suggest_install
from edgepack.runtime.device.machine import satisfies
from edgepack.runtime.errors import EdgepackError
from edgepack.runtime.session.tensorrt_build import Options, Profiles, build

MODULE = "tensorrt_rtx"
EXTRA = suggest_install("tensorrt-rtx")
# Compute capabilities that it builds for, in the order in which they stand in for others.
CAPABILITIES = ("8.6", "8.9", "8.0", "7.5", "12.0", "12.1")
TIMEOUT_S = 1200.0
MODEL, OPTIONS, RESULT = "model.onnx", "options.json", "result.json"


@dataclass(frozen=True)
class Parsed:
    """Result of the check.

    Attributes:
        version: version of TensorRT-RTX.
        capability: compute capability of the GPU that it built for.
        seconds: duration of parsing and building.
        engine_bytes: size of the engine.
    """

    version: str
    capability: str
    seconds: float
    engine_bytes: int


def installed() -> bool:
    """Return True if TensorRT-RTX is installed in this environment."""
    return find_spec(MODULE) is not None


def capability_for(specifier: str) -> str:
    """Return the compute capability to build for: one that the target accepts, else 8.6."""
    # "8.7" of a Jetson Orin is not in the list, so 8.6, of the same generation, stands in for it.
    return next((c for c in CAPABILITIES if satisfies(c, specifier)), CAPABILITIES[0])


def check(model: bytes, profiles: Profiles, capability: str) -> Parsed:
    """Parse an ONNX as a strongly typed network and build an engine, in a separate process.

    Args:
        model: the serialised ONNX.
        profiles: shapes of every input with a dynamic axis.
        capability: compute capability of the GPU to build for: "8.9".

    Raises EngineError: engine-parse with the node, engine-build, engine-profile, as on the
    device; engine-check-failed if the process died or took too long.
    """
    # The folder holds the request and the answer: model.onnx and options.json are written here,
    # result.json by the process, with the fields of Parsed or {"error": {...}}.
    with files.temporary_folder() as folder:
        (folder / MODEL).write_bytes(model)
        options = {"profiles": {k: list(v) for k, v in profiles.items()}, "capability": capability}
        (folder / OPTIONS).write_text(json.dumps(options))
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(folder)],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise _check_failed(f"not finished after {TIMEOUT_S:.0f} s") from error
        if done.returncode or not (folder / RESULT).is_file():
            status = f"its process ended with {done.returncode}"
            raise _check_failed("\n".join([status, *done.stderr.strip().splitlines()[-4:]]))
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    if "error" in result:
        fault = result["error"]
        raise EngineError(fault["code"], fault["what"], why=fault["why"], hint=fault["hint"])
    return Parsed(**result)


def _check_failed(why: str) -> EngineError:
    return EngineError(
        "engine-check-failed",
        "TensorRT-RTX could not check the ONNX",
        why=why,
        hint="pip uninstall tensorrt-rtx-cu13 to build without this check",
    )


def _parse_and_build(folder: Path) -> dict[str, Any]:
    """Run the check; called in the separate process."""
    import tensorrt_rtx as trt

    request = json.loads((folder / OPTIONS).read_text())
    # JSON has no tuples: {"x": [[1, 3], [4, 3], [8, 3]]} becomes {"x": ((1, 3), (4, 3), (8, 3))}.
    profiles: Profiles = {
        name: (tuple(least), tuple(usual), tuple(most))
        for name, (least, usual, most) in request["profiles"].items()
    }
    options = Options(profiles=profiles, compute_capability=request["capability"])
    started = time.perf_counter()
    try:
        engine, _ = build(trt, (folder / MODEL).read_bytes(), options, b"", lambda seconds: None)
    except EdgepackError as error:
        return {"error": error.to_json()}
    return {
        "version": trt.__version__,
        "capability": request["capability"],
        "seconds": round(time.perf_counter() - started, 3),
        "engine_bytes": len(engine),
    }


if __name__ == "__main__":
    _folder = Path(sys.argv[1])
    (_folder / RESULT).write_text(json.dumps(_parse_and_build(_folder)))
