"""Sessions of onnxruntime."""

from __future__ import annotations

import os
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence

from ..bundle.engines import PROVIDER
from ..device.variants import REQUIREMENTS
from ..errors import BundleError, DeviceError

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from ..tensor import Tensor

# Option that computes Q/DQ pairs literally, in float, instead of fusing them into integer kernels.
LITERAL = "session.disable_quant_qdq"
SPINNING = "session.intra_op.allow_spinning"
CPU = "CPUExecutionProvider"

# From 1.29 on, onnxruntime's Linux wheels report every process and session to the vendor, and store
# an identifier in the user's cache. This variable disables that if it is set before the import.
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def import_engine() -> ModuleType:
    """Import onnxruntime without telemetry. Raises DeviceError if it is not installed."""
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
    engine: ModuleType = onnxruntime
    return engine


class OnnxSession:
    """Model in onnxruntime.

    Args:
        model: the serialised ONNX.
        threads: threads within an operator; 0 lets onnxruntime use every physical core.
        cuda: run on the first NVIDIA GPU; operators without a GPU kernel run on the CPU.
        provider: onnxruntime's name of another accelerator; "" for none.
        literal: compute quantized operators in float, on dequantized values.
        spinning: let threads spin while they wait; None for onnxruntime's default.

    Raises DeviceError if onnxruntime refuses the model, or does not start on a requested GPU.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 0,
        cuda: bool = False,
        provider: str = "",
        literal: bool = False,
        spinning: Optional[bool] = None,
    ) -> None:
        ort = import_engine()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if literal:
            options.add_session_config_entry(LITERAL, "1")
        if spinning is not None:
            options.add_session_config_entry(SPINNING, str(int(spinning)))
        # Fatal errors only: everything else is raised as an EdgepackError and would be shown twice.
        options.log_severity_level = 4
        provider = provider or (PROVIDER if cuda else CPU)
        if provider != CPU:
            from .placement import RECORD, read_nodes, require_provider

            options.add_session_config_entry(RECORD, "1")
        output = StringIO()
        try:
            # When the GPU fails to start, onnxruntime prints to stdout, which is reserved for the
            # result.
            with redirect_stdout(output) if cuda else nullcontext():
                if cuda and hasattr(ort, "preload_dlls"):  # CUDA out of pip's packages; 1.21
                    ort.preload_dlls()
                # Without this flag it retries on the same provider and prints "EP Error" before it
                # fails.
                session = ort.InferenceSession(
                    model, options, providers=[provider], enable_fallback=int(cuda)
                )
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise DeviceError(
                "engine-refused",
                f"onnxruntime {ort.__version__} refuses the model",
                why=str(error).strip(),
                hint="install the versions in the bundle's requirements.txt",
            ) from error
        self.provider = provider
        if provider != CPU:
            require_provider(session, provider, ort.__version__, output.getvalue().strip())
            # Nodes with the provider of each; None if onnxruntime does not report them.
            self.nodes = read_nodes(session)
        self._inputs = {tensor.name: _dtype(tensor.type) for tensor in session.get_inputs()}
        self._outputs = {tensor.name: _dtype(tensor.type) for tensor in session.get_outputs()}
        self.output_names: List[str] = list(self._outputs)
        self._run: Callable[..., Sequence[np.ndarray]] = session.run

    def require_signature(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Raise BundleError unless the model has these inputs and at least these outputs."""
        expected = {tensor.name: tensor.dtype for tensor in inputs}
        # An input beyond those of the index is one that nothing feeds.
        unfed = dict.fromkeys(self._inputs)
        require_types("input", {**unfed, **expected}, self._inputs)
        require_types("output", {tensor.name: tensor.dtype for tensor in outputs}, self._outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Run one inference: arrays by input name in, arrays by output name out."""
        return dict(zip(self.output_names, self._run(None, inputs)))


def require_types(
    title: str, expected: Mapping[str, Optional[str]], actual: Mapping[str, str]
) -> None:
    """Raise BundleError unless the types of the index, None if absent, are those of the model."""
    for name in sorted(expected):
        in_index, in_model = expected[name], actual.get(name)
        if in_index != in_model:
            raise BundleError(
                "bundle-model",
                "the model in the bundle is not the one that its index describes",
                why=f"{title} {name}: {in_index or 'absent'} in the index, "
                f"{in_model or 'absent'} in the model",
                hint="build the bundle again",
            )


def _dtype(kind: str) -> str:
    """Return numpy's name of a type: "tensor(float)" is "float32"; others stay unchanged."""
    name = kind
    if kind.startswith("tensor("):
        name = kind[len("tensor(") : -1]
    return {"float": "float32", "double": "float64"}.get(name, name)
