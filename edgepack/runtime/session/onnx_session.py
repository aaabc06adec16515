"""The onnxruntime engine, as the loader uses it."""

from __future__ import annotations

import os
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Sequence

from ..device.variants import PROVIDER, REQUIREMENTS
from ..errors import BundleError, DeviceError

if TYPE_CHECKING:
    import numpy as np

    from ..tensor import Tensor

# Computes Q/DQ pairs as they stand, in float, and makes no integer kernels of them.
LITERAL = "session.disable_quant_qdq"

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
            hint=REQUIREMENTS,
        ) from error
    return onnxruntime


class OnnxSession:
    """A model in onnxruntime.

    Args:
        model: the serialised ONNX.
        threads: threads within an operator; 0 lets onnxruntime take every physical core.
        cuda: run on the first NVIDIA GPU; the operators that it has no kernel for run on the CPU.
        literal: compute quantized operators in float, on the values that their integers stand for.

    Raises DeviceError where onnxruntime does not take the model, and where it was to run on a GPU
    and does not.
    """

    def __init__(
        self, model: bytes, *, threads: int = 0, cuda: bool = False, literal: bool = False
    ) -> None:
        ort = import_engine()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if literal:
            options.add_session_config_entry(LITERAL, "1")
        # What onnxruntime would print becomes an EdgepackError, told once.
        options.log_severity_level = 4
        providers = [PROVIDER] if cuda else ["CPUExecutionProvider"]
        told = StringIO()
        try:
            # On its way to a GPU it prints its complaints; stdout is for the result alone.
            with redirect_stdout(told) if cuda else nullcontext():
                if cuda and hasattr(ort, "preload_dlls"):  # CUDA out of pip's packages; 1.21
                    ort.preload_dlls()
                # Its second try with the same provider would print "EP Error" before it fails.
                session = ort.InferenceSession(
                    model, options, providers=providers, enable_fallback=int(cuda)
                )
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise DeviceError(
                "engine-refused",
                "onnxruntime {} does not take the model".format(ort.__version__),
                why=str(error).strip(),
                hint="install the versions in the bundle's requirements.txt",
            ) from error
        if cuda:
            _require_cuda(session, ort.__version__, told.getvalue().strip())
        self._inputs = {tensor.name: _dtype(tensor.type) for tensor in session.get_inputs()}
        self._outputs = {tensor.name: _dtype(tensor.type) for tensor in session.get_outputs()}
        self.output_names: List[str] = list(self._outputs)
        self._run: Callable[..., Sequence[Any]] = session.run

    def require_signature(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Raise BundleError unless the model takes these inputs and gives these outputs."""
        for title, actual, tensors in (
            ("input", self._inputs, inputs),
            ("output", self._outputs, outputs),
        ):
            expected = {tensor.name: tensor.dtype for tensor in tensors}
            for name in sorted(set(expected) | (set(actual) if title == "input" else set())):
                if expected.get(name) != actual.get(name):
                    raise BundleError(
                        "bundle-model",
                        "the model in the bundle is not the one that its index describes",
                        why="{} {}: {} in the index, {} in the model".format(
                            title, name, expected.get(name, "absent"), actual.get(name, "absent")
                        ),
                        hint="build the bundle again",
                    )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference: arrays by input name in, arrays by output name out."""
        return dict(zip(self.output_names, self._run(None, inputs)))


def _dtype(kind: str) -> str:
    """Return numpy's name of onnxruntime's "tensor(float)"; other kinds as they are."""
    name = kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind
    return {"float": "float32", "double": "float64"}.get(name, name)


def _require_cuda(session: Any, version: str, told: str) -> None:
    """Refuse a session that goes on without the GPU: onnxruntime makes one where it must."""
    active = session.get_providers()
    if PROVIDER not in active:
        raise DeviceError(
            "engine-provider",
            "onnxruntime {} did not start on the GPU".format(version),
            why="it would run in {}{}".format(", ".join(active), told and "\n" + told),
            hint="it needs the CUDA and the cuDNN that it was built with: "
            "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html",
        )
    # Nor may it go on without it later, when a call fails.
    session.disable_fallback()
