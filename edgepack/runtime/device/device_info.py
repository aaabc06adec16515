"""Device info, probed on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Union, cast

from ..bundle.engines import TENSORRT
from ..errors import DeviceError
from . import machine

if TYPE_CHECKING:
    from types import ModuleType

    from ..bundle.index import Index
    from ..bundle.seal import Sealed
    from ..documents import DeviceFacts, OnnxruntimeDocument


class _DeviceInfo(Dict[str, object]):
    """Mapping of `machine.describe` that probes the GPU and onnxruntime on first access.

    A bundle that needs no GPU therefore never probes for one, and a device that runs TensorRT
    does not load onnxruntime as well.
    """

    def __init__(self, index: Index) -> None:
        super().__init__(machine.describe().items())
        self._tensorrt = any(variant.engine == TENSORRT for variant in index.variants)

    def __missing__(self, key: str) -> object:
        # Each probe fills several keys at once; a later access to them costs nothing: reading "gpu"
        # starts the probe's process, and "board" is then known too.
        if key == "onnxruntime_providers":
            self[key] = ", ".join(_onnxruntime().get_available_providers())
        elif key == "onnxruntime":
            self.update(onnxruntime_version().items())
        elif key == "openvino":
            from ..session.openvino_session import openvino_version

            self.update(openvino_version().items())
        else:
            from .gpu import probe

            self.update(probe(self._tensorrt).items())
        return dict.__getitem__(self, key)


def device_info(index: Index) -> DeviceFacts:
    """Return the device info for a bundle, which probes for each fact when it is first read."""
    return cast("DeviceFacts", _DeviceInfo(index))


def onnxruntime_version() -> OnnxruntimeDocument:
    """Return the version of onnxruntime; None with `onnxruntime_why` if it cannot be imported."""
    try:
        return {"onnxruntime": str(_onnxruntime().__version__)}
    except DeviceError as error:
        return {"onnxruntime": None, "onnxruntime_why": error.why}


def _onnxruntime() -> ModuleType:
    from ..session.onnx_session import import_engine

    return import_engine()


def find_sealed(bundle: str, index: Index) -> Union[Sealed, DeviceError, None]:
    """Return the engine that was built on this device, or the reason not to use it.

    None if there is none, or if no variant of the bundle needs one.
    """
    if not any(variant.unfinished for variant in index.variants):
        return None
    from ..bundle.seal import find

    try:
        return find(bundle)
    except DeviceError as error:
        return error
