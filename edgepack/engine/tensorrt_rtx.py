"""TensorRT-RTX, where it is installed: proof that TensorRT takes an ONNX, without a GPU.

It is a real TensorRT with the parser and the builder of the others, and builds for a GPU that is
not there. What it builds is not kept: its engines are its own, and no kernel has run. It is native
code that reads what it is given, so it works in a process of its own.
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
from edgepack.errors import EngineError
from edgepack.runtime.device.machine import satisfies
from edgepack.runtime.errors import EdgepackError
from edgepack.runtime.session.tensorrt_build import Options, Profiles, build

MODULE = "tensorrt_rtx"
EXTRA = "pip install 'edgepack[tensorrt-rtx]'"
# The GPUs that it knows, those that stand in for others first.
CAPABILITIES = ("8.6", "8.9", "8.0", "7.5", "12.0", "12.1")
TIMEOUT_S = 1200.0
MODEL, OPTIONS, RESULT = "model.onnx", "options.json", "result.json"


@dataclass(frozen=True)
class Parsed:
    """What the check found.

    Attributes:
        version: of TensorRT-RTX.
        capability: the GPU that it built for.
        seconds: parsing and building.
        engine_bytes: size of what it built.
    """

    version: str
    capability: str
    seconds: float
    engine_bytes: int


def installed() -> bool:
    """Whether TensorRT-RTX is in this environment."""
    return find_spec(MODULE) is not None


def capability_for(specifier: str) -> str:
    """The GPU to build for: one that the target names, else the nearest of its generation."""
    return next((c for c in CAPABILITIES if satisfies(c, specifier)), CAPABILITIES[0])


def check(model: bytes, profiles: Profiles, capability: str) -> Parsed:
    """Parse an ONNX as a strongly typed network and build an engine from it, in a process apart.

    Args:
        model: the serialised ONNX.
        profiles: shapes of every input with a dynamic axis.
        capability: of the GPU that it is built for: "8.9".

    Raises EngineError: engine-parse with the node, engine-build, engine-profile, as the device
    would; engine-check-failed where the process died or took too long.
    """
    with files.temporary_folder() as place:
        (place / MODEL).write_bytes(model)
        options = {"profiles": {k: list(v) for k, v in profiles.items()}, "capability": capability}
        (place / OPTIONS).write_text(json.dumps(options))
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(place)],
                cwd=place,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise _failed(f"it was not done after {TIMEOUT_S:.0f} s") from error
        if done.returncode or not (place / RESULT).is_file():
            how = f"its process ended with {done.returncode}"
            raise _failed("\n".join([how, *done.stderr.strip().splitlines()[-4:]]))
        found: dict[str, Any] = json.loads((place / RESULT).read_text())
    if "error" in found:
        told = found["error"]
        raise EngineError(told["code"], told["what"], why=told["why"], hint=told["hint"])
    return Parsed(**found)


def _failed(why: str) -> EngineError:
    return EngineError(
        "engine-check-failed",
        "TensorRT-RTX could not be asked whether it takes the ONNX",
        why=why,
        hint="without it (pip uninstall tensorrt-rtx-cu13) the build goes on, and says that this "
        "was not proved",
    )


def _work(folder: Path) -> dict[str, Any]:
    """The check itself, in its own process."""
    import tensorrt_rtx as trt

    read = json.loads((folder / OPTIONS).read_text())
    profiles: Profiles = {
        name: (tuple(least), tuple(usual), tuple(most))
        for name, (least, usual, most) in read["profiles"].items()
    }
    options = Options(profiles=profiles, compute_capability=read["capability"])
    started = time.perf_counter()
    try:
        engine, _ = build(trt, (folder / MODEL).read_bytes(), options, b"", lambda seconds: None)
    except EdgepackError as error:
        return {"error": error.to_json()}
    return {
        "version": trt.__version__,
        "capability": read["capability"],
        "seconds": round(time.perf_counter() - started, 3),
        "engine_bytes": len(engine),
    }


if __name__ == "__main__":
    _folder = Path(sys.argv[1])
    (_folder / RESULT).write_text(json.dumps(_work(_folder)))
