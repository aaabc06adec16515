"""Stand-ins for a GPU and for TensorRT, neither of which is to be had where the tests run.

`cuda.c` says what the one proves, `modules/tensorrt.py` what the other does. What is tested with
them is the loader's own part: what it asks, in which order, and what it does with the answers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgepack import bundle
from edgepack.runtime.bundle.engines import EngineOptions, Variant

FOLDER = Path(__file__).parent
GPU = "Stand-in Orin"


@dataclass(frozen=True)
class StandIn:
    """The libraries, built.

    Attributes:
        folder: has libcuda.so.1 and libcudart.so.12, which are one and the same.
    """

    folder: Path

    @property
    def library(self) -> Path:
        """libcudart.so.12."""
        return self.folder / "libcudart.so.12"

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a process on a device with that GPU, and with TensorRT."""
        path = [str(FOLDER / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.folder),
            "PYTHONPATH": os.pathsep.join(path),
            "STANDIN_LIBRARY": str(self.library),
            "STANDIN_GPU": GPU,
            **variables,
        }

    def run(
        self, bundle: Path, *arguments: str, python: str = sys.executable, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of a bundle on that device; a variable set to "" is left out."""
        environment = self.environment(**variables)
        return subprocess.run(
            [python, str(bundle), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={key: value for key, value in environment.items() if value},
        )


def build(folder: Path) -> StandIn:
    """Compile the stand-in. Skips, with the reason, where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for CUDA with: apt-get install gcc")
    found = StandIn(folder)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", found.library, FOLDER / "cuda.c"], check=True
    )
    shutil.copy(found.library, folder / "libcuda.so.1")
    return found


@pytest.fixture(scope="session")
def gpu_standin(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A device with a GPU and TensorRT that are none; see gpu_standin."""
    return build(tmp_path_factory.mktemp("gpu"))


def tensorrt_contents() -> bundle.Contents:
    """As `linear_contents`, for TensorRT, with onnxruntime to fall back to."""
    from support.linear import linear_contents

    return replace(
        linear_contents(),
        variants=[
            Variant(
                "tensorrt",
                "tensorrt",
                {"compute_capability": ">=8.0", "engine_version": ">=10,<12"},
            ),
            Variant("onnxruntime", "onnxruntime", {"engine_version": "1.19"}),
        ],
        engine_options=EngineOptions(profiles={"x": ((1, 8), (1, 8), (4, 8))}),
    )


@pytest.fixture
def tensorrt_bundle(tmp_path: Path) -> Path:
    """A bundle whose engine is to be finished on the device."""
    path = tmp_path / "linear-jetson-trt.edgepack"
    from support.linear import measured

    contents = tensorrt_contents()
    # What the build host answered: its own arithmetic on the same weights.
    bundle.write(path, measured(replace(contents, built=contents.original)))
    return path
