"""The onnxruntime engine, as the loader uses it."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, Sequence

import numpy as np

from .device import satisfies
from .errors import DeviceError

ENGINE = "onnxruntime"


# From 1.29 on, onnxruntime's Linux wheels tell their maker about every process and session, and
# keep an identifier in the user's cache. This variable stops it, if it is set before the import.
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def import_engine() -> Any:
    """onnxruntime, kept from the network. Raises DeviceError where it is not installed."""
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            "engine-missing",
            "onnxruntime cannot be imported on this device",
            why=str(error),
            hint="pip install the versions in the bundle's requirements.txt:\n"
            "python3 BUNDLE info --requirements > requirements.txt",
        ) from error
    return onnxruntime


def version() -> str:
    """The version of onnxruntime that is installed here. Raises DeviceError where none is."""
    return str(import_engine().__version__)


class OnnxSession:
    """A model in onnxruntime on the CPU.

    Args:
        model: the serialised ONNX.
        versions: of onnxruntime that compute it as it was built, as a specifier.
        threads: threads within an operator; 0 lets onnxruntime take every physical core.
    """

    def __init__(self, model: bytes, *, versions: str = "", threads: int = 0) -> None:
        ort = import_engine()
        if not satisfies(ort.__version__, versions):
            raise DeviceError(
                "engine-version",
                "this onnxruntime is not one that the bundle needs",
                why="it needs {}; this is {}".format(versions, ort.__version__),
                hint="pip install 'onnxruntime{}'".format(
                    versions if versions[:1] in "<>=" else ">=" + versions
                ),
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # What onnxruntime would print becomes an EdgepackError, told once.
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise DeviceError(
                "engine-refused",
                "onnxruntime {} does not take the model".format(ort.__version__),
                why=str(error).strip(),
                hint="install the versions in the bundle's requirements.txt",
            ) from error
        self.output_names: List[str] = [output.name for output in session.get_outputs()]
        self._run: Callable[..., Sequence[Any]] = session.run

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference: arrays by input name in, arrays by output name out."""
        return dict(zip(self.output_names, self._run(None, inputs)))
