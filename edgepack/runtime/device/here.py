"""What this device is, found out as far as it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Union

from ..bundle.engines import TENSORRT
from ..errors import DeviceError
from . import machine

if TYPE_CHECKING:
    from ..bundle.index import Index
    from ..bundle.seal import Sealed


class Here(Dict[str, Any]):
    """`machine.describe`; the GPU and onnxruntime are looked at once somebody asks for them.

    So a bundle that needs no GPU looks for none, and a device that runs TensorRT does not load
    onnxruntime beside it.
    """

    def __init__(self, index: Index) -> None:
        super().__init__(machine.describe())
        self._tensorrt = any(variant.engine == TENSORRT for variant in index.variants)

    def __missing__(self, key: str) -> Any:
        if key == "onnxruntime_providers":
            self[key] = ", ".join(_onnxruntime().get_available_providers())
        elif key == "onnxruntime":
            self.update(onnxruntime())
        else:
            from .gpu import probe

            self.update(probe(self._tensorrt))
        return dict.__getitem__(self, key)


def onnxruntime() -> Dict[str, Any]:
    """Version of onnxruntime; None where it cannot be imported, with `onnxruntime_why`."""
    try:
        return {"onnxruntime": str(_onnxruntime().__version__)}
    except DeviceError as error:
        return {"onnxruntime": None, "onnxruntime_why": error.why}


def _onnxruntime() -> Any:
    from ..session.onnx_session import import_engine

    return import_engine()


def find_sealed(bundle: str, index: Index) -> Union[Sealed, DeviceError, None]:
    """The engine that was built on this device, or why it is not to be used.

    None where there is none, and where the bundle has no variant that needs one.
    """
    if not any(variant.unfinished for variant in index.variants):
        return None
    from ..bundle.seal import find

    try:
        return find(bundle)
    except DeviceError as error:
        return error
