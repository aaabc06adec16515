"""Start of a model in an engine on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence, Union

from ..bundle.engines import DEFAULTS, OPENVINO, Settings

if TYPE_CHECKING:
    from ..tensor import Tensor
    from .onnx_session import OnnxSession
    from .openvino_session import OpenVinoSession


def open_session(
    engine: str,
    model: bytes,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    settings: Settings = DEFAULTS,
    *,
    threads: int = 0,
    literal: bool = False,
) -> Union[OnnxSession, OpenVinoSession]:
    """Start a model in onnxruntime or OpenVINO on the CPU.

    Args:
        engine: ONNXRUNTIME or OPENVINO.
        model: the serialised ONNX.
        inputs: of the model.
        outputs: of the model.
        settings: of the engine.
        threads: threads within an operator, in place of the settings'; 0 for those.
        literal: compute quantized operators in float, which only onnxruntime can.

    Raises DeviceError if the engine is missing or refuses the model, BundleError if the model is
    another than the inputs and outputs describe.
    """
    if threads:
        settings = settings._replace(threads=threads)
    if engine == OPENVINO:
        from .openvino_session import OpenVinoSession

        return OpenVinoSession(model, inputs, outputs, settings)
    from .onnx_session import OnnxSession

    session = OnnxSession(
        model, threads=settings.threads, literal=literal, spinning=settings.spinning
    )
    session.require_signature(inputs, outputs)
    return session
