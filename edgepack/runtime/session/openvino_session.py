"""Sessions of OpenVINO on the CPU."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence

import numpy as np

from ..bundle.engines import DEFAULTS, Settings
from ..device.variants import REQUIREMENTS
from ..errors import DeviceError
from .onnx_session import require_types

if TYPE_CHECKING:
    from types import ModuleType

    from ..documents import OpenVinoDocument
    from ..tensor import Tensor

# Importing OpenVINO reports to the vendor and stores an identifier in the user's home, if this
# package can be imported; OpenVINO works without it.
TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Import OpenVINO without telemetry. Raises DeviceError if it is not installed."""
    blocked = TELEMETRY not in sys.modules
    if blocked:
        # Python raises ImportError for a module that is None here.
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise DeviceError(
            "engine-missing",
            "OpenVINO cannot be imported on this device",
            why=str(error),
            hint=REQUIREMENTS,
        ) from error
    finally:
        if blocked:
            del sys.modules[TELEMETRY]
    module: ModuleType = openvino
    return module


class OpenVinoSession:
    """Model in OpenVINO, on the CPU.

    Args:
        model: the serialised ONNX.
        inputs: of the model; if all of their sizes are fixed, OpenVINO plans for these alone.
        outputs: of the model, in the order of `output_names`.
        settings: precision and threads.

    Raises DeviceError if OpenVINO is missing or refuses the model, BundleError if the model is
    another than the inputs and outputs describe.
    """

    def __init__(
        self,
        model: bytes,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        settings: Settings = DEFAULTS,
    ) -> None:
        ov = import_openvino()
        properties: Dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": settings.precision,
            "INFERENCE_NUM_THREADS": settings.threads,
        }
        try:
            core = ov.Core()
            network = core.read_model(model)
            shapes = _fixed_shapes(inputs)
            if shapes and network.is_dynamic():
                network.reshape(shapes)
            self._compiled = core.compile_model(network, "CPU", properties)
        except Exception as error:  # OpenVINO's exceptions share no base but Exception
            raise DeviceError(
                "engine-refused",
                f"OpenVINO {version_of(ov)} refuses the model",
                why=_shorten(str(error)),
                hint="install the versions in the bundle's requirements.txt",
            ) from error
        self.output_names: List[str] = [tensor.name for tensor in outputs]
        self._positions = self._check_signature(inputs, outputs)
        # A request runs one inference at a time, so that concurrent calls take one each.
        self._requests = [self._compiled.create_infer_request()]

    def _check_signature(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> List[int]:
        """Return the position of every output; raise BundleError for another model."""
        # A tensor may have several names: of the ONNX, and of operators that OpenVINO merged.
        positions: Dict[str, int] = {}
        expected, actual = {}, {}
        for port in self._compiled.inputs:
            for name in port.get_names():
                actual[name] = port.get_element_type().to_dtype().name
        for tensor in inputs:
            expected[tensor.name] = tensor.dtype
        require_types("input", expected, actual)
        actual = {}
        for position, port in enumerate(self._compiled.outputs):
            for name in port.get_names():
                positions[name] = position
                actual[name] = port.get_element_type().to_dtype().name
        require_types("output", {tensor.name: tensor.dtype for tensor in outputs}, actual)
        return [positions[tensor.name] for tensor in outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Run one inference: arrays by input name in, arrays by output name out."""
        try:
            request = self._requests.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # The inputs are read in place. The outputs are copied, since the next call overwrites
        # the request's own.
        results = request.infer(inputs, share_inputs=True, share_outputs=False)
        arrays = [results[position] for position in self._positions]
        self._requests.append(request)
        return dict(zip(self.output_names, arrays))


def openvino_version() -> OpenVinoDocument:
    """Return the version of OpenVINO; None with `openvino_why` if it cannot be imported."""
    try:
        return {"openvino": version_of(import_openvino())}
    except DeviceError as error:
        return {"openvino": None, "openvino_why": error.why}


def version_of(openvino: ModuleType) -> str:
    """Return the version: of "2026.4.1-22982-e213a147257" the part before the build."""
    return str(openvino.__version__).split("-")[0]


def _fixed_shapes(inputs: Sequence[Tensor]) -> Optional[Dict[str, List[int]]]:
    """Return the shape of every input; None if a size of one is not fixed."""
    shapes: Dict[str, List[int]] = {}
    for tensor in inputs:
        sizes = [size for size in tensor.shape if not isinstance(size, str)]
        if len(sizes) != len(tensor.shape):
            return None
        shapes[tensor.name] = sizes
    return shapes


def _shorten(message: str) -> str:
    """Leave out the places in OpenVINO's source, of which a message has several."""
    lines = []
    for line in message.splitlines():
        line = line.strip()
        if line and not line.startswith(("Exception from ", "Check '", "While ")):
            lines.append(line)
    return os.linesep.join(lines) or message.strip()
