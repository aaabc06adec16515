"""GPU memory and streams: the few calls of CUDA's runtime that a TensorRT session needs.

They are made by ctypes on libcudart, which needs no package and no Python in particular; where
there is no libcudart, NVIDIA's `cuda.bindings` or `pycuda` make them.
"""

from __future__ import annotations

from typing import Callable, List

from ..errors import DeviceError
from .cuda_calls import Cuda
from .cuda_packages import CudaBindings, PyCuda
from .libcudart import Libcudart, libraries


def open_cuda() -> Cuda:
    """CUDA by the first of the three ways that works. Raises DeviceError with all that did not."""
    ways: List[Callable[[], Cuda]] = [
        *(lambda path=path: Libcudart(path) for path in libraries()),
        CudaBindings,
        PyCuda,
    ]
    reasons: List[str] = []
    for way in ways:
        try:
            return way()
        except DeviceError as error:
            reasons.append(error.why)
        except (OSError, ImportError, AttributeError) as error:
            reasons.append(str(error))
    raise DeviceError(
        "cuda-missing",
        "no CUDA runtime works on this device",
        why="\n".join(dict.fromkeys(reasons)),
        hint="pip install nvidia-cuda-runtime-cu12 (on a Jetson it comes with JetPack)",
    )
