"""GPU memory and streams: open the CUDA runtime for a TensorRT session.

The calls go through ctypes on libcudart, which needs no package and works with any Python. Without
a libcudart, NVIDIA's `cuda.bindings` or `pycuda` serve instead.
"""

from __future__ import annotations

from typing import Callable, List

from ..errors import DeviceError
from .cuda_calls import Cuda
from .cuda_packages import CudaBindings, PyCuda
from .libcudart import Libcudart, libraries


def open_cuda() -> Cuda:
    """Open the first CUDA runtime that works. Raises DeviceError with every reason if none does."""
    # A library needs no package, so the libraries come first; each lambda binds its own path.
    openers: List[Callable[[], Cuda]] = [
        *(lambda path=path: Libcudart(path) for path in libraries()),
        CudaBindings,
        PyCuda,
    ]
    # A library that exists may still refuse the driver: then the next one is tried.
    reasons: List[str] = []
    for opener in openers:
        try:
            return opener()
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
