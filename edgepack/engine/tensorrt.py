"""TensorRT as an engine: the device builds it from the ONNX, whose every type it takes literally.

An engine is bound to its GPU and its TensorRT, so none is built here. What can be proved here is
proved: that the ONNX keeps the rules of TensorRT's parser, and, where TensorRT-RTX is installed,
that a TensorRT parses it and builds from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgepack.engine import onnxruntime, tensorrt_rtx
from edgepack.engine.built import Built
from edgepack.engine.onnxruntime_cuda import name_half_tensors
from edgepack.errors import EngineError
from edgepack.runtime.device.machine import version_tuple
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

if TYPE_CHECKING:
    import onnx

# The newest opset that the first parsers of a line of releases read, as their operators.md states.
NEWEST_OPSET = {8: 17, 10: 20}
# Quantized operators of ONNX that are no Q/DQ pairs.
INTEGER_OPERATORS = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
)
SHOWN = 4


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check that TensorRT will take this ONNX, and give it back with its fp16 tensors named.

    Raises EngineError: engine-opset, engine-qdq, and what `tensorrt_rtx.check` raises.
    """
    import onnx

    onnxruntime.build(model, target, profiles)
    proto = onnx.load_model_from_string(model)
    _check_opset(proto, target)
    _check_pairs(proto)
    count = name_half_tensors(proto)
    named = proto.SerializeToString(deterministic=True)
    notes = ["TensorRT builds its engine from the ONNX on the device: python3 BUNDLE finish"]
    warnings = [
        "no TensorRT has run this: the answers and the quality are those of onnxruntime on this "
        "host's CPU, on the same Q/DQ pairs; finish on the device proves that its engine computes "
        "the same"
    ]
    details: dict[str, Any] = {"half_tensors": count, "tensorrt_rtx": None}
    if tensorrt_rtx.installed():
        capability = tensorrt_rtx.capability_for(target.compute_capability)
        found = tensorrt_rtx.check(named, profiles, capability)
        details["tensorrt_rtx"] = asdict(found)
        notes.append(
            f"parsed and built by TensorRT-RTX {found.version} for compute capability "
            f"{found.capability}, without a GPU, in {found.seconds:.1f} s"
        )
    else:
        warnings.append(
            "TensorRT-RTX is not installed: that TensorRT parses this ONNX was not proved "
            f"({tensorrt_rtx.EXTRA})"
        )
    return Built(named, tuple(notes), tuple(warnings), details)


def requirements() -> str:
    """requirements.txt of the device: numpy. TensorRT comes with its image, never from pip."""
    lines = onnxruntime.requirements().splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("numpy"))


def _check_opset(model: onnx.ModelProto, target: Target) -> None:
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    oldest = version_tuple(target.engine_version.lstrip("<>="))
    newest = NEWEST_OPSET.get(oldest[0] if oldest else 10)
    if newest is not None and opset > newest:
        raise EngineError(
            "engine-opset",
            "the ONNX is too new for the target's TensorRT",
            why=f"it is of opset {opset}; TensorRT {target.engine_version} reads up to {newest}",
            hint=f"engine.opset = {newest} in the profile",
        )


def _check_pairs(model: onnx.ModelProto) -> None:
    faults = list(_faults(model))
    if faults:
        more = f"\nand {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise EngineError(
            "engine-qdq",
            "TensorRT does not take the way in which this ONNX is quantized",
            why="\n".join(faults[:SHOWN]) + more,
            hint="--chain quantize:scheme=tensorrt:range=full,half on the float model",
        )


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    import onnx
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        title = f"{node.name} ({node.op_type})"
        if node.op_type in INTEGER_OPERATORS:
            yield f"{title}: integer operators are to be Q/DQ pairs"
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        stored = constants.get(node.input[0])
        if stored is not None and stored.data_type == onnx.TensorProto.INT32:
            yield f"{title}: a bias is to be float"
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and numpy_helper.to_array(zero).any():
            yield f"{title}: its zero point is not 0"
