"""TensorRT as an engine: the device builds it from the ONNX, as a strongly typed network.

An engine is bound to its GPU and its TensorRT, so none is built on this host. The build checks
that the ONNX follows the rules of TensorRT's parser and, if TensorRT-RTX is installed, that a real
TensorRT parses the ONNX and builds an engine from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgepack.engine import onnxruntime, tensorrt_rtx
from edgepack.engine.built import Built
from edgepack.engine.onnxruntime_cuda import name_half_tensors
from edgepack.errors import EngineError
from edgepack.listing import join_lines
from edgepack.onnx_tools.limits import default_opset
from edgepack.onnx_tools.lower import lower_opset
from edgepack.onnx_tools.operators import Trait, having, is_quantized
from edgepack.onnx_tools.walk import is_standard
from edgepack.onnx_tools.writer import serialised
from edgepack.runtime.bundle.engines import TENSORRT
from edgepack.runtime.device.machine import version_tuple
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

if TYPE_CHECKING:
    import onnx

RUNTIME = TENSORRT
# Newest opset that the first parser of each major release reads, according to its operators.md.
NEWEST_OPSET = {8: 17, 10: 20}
# Faults listed in a message; a network repeats the same fault in every layer.
SHOWN = 4


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check that TensorRT can parse this ONNX, and return it with its fp16 tensors named.

    Raises EngineError: engine-opset, engine-qdq, and the codes of `tensorrt_rtx.check`.
    """
    import onnx

    onnxruntime.build(model, target, profiles)
    proto = onnx.load_model_from_string(model)
    lacking = _lower(proto, target)
    _check_opset(proto, target, lacking)
    _check_pairs(proto)
    count = name_half_tensors(proto)
    data = serialised(proto)
    notes = ["TensorRT builds its engine from the ONNX on the device: python3 BUNDLE finish"]
    warnings = [
        "not run by TensorRT: answers and quality were measured with onnxruntime on this host's "
        "CPU, on the same Q/DQ pairs; run finish on the device to check that its engine agrees"
    ]
    details: dict[str, object] = {"half_tensors": count, "tensorrt_rtx": None}
    if tensorrt_rtx.installed():
        capability = tensorrt_rtx.capability_for(target.compute_capability)
        parsed = tensorrt_rtx.check(data, profiles, capability)
        details["tensorrt_rtx"] = asdict(parsed)
        notes.append(
            f"parsed and built by TensorRT-RTX {parsed.version} for compute capability "
            f"{parsed.capability}, without a GPU, in {parsed.seconds:.1f} s"
        )
    else:
        warnings.append(
            "TensorRT-RTX is not installed: not verified that TensorRT parses this ONNX "
            f"({tensorrt_rtx.EXTRA})"
        )
    return Built(data, tuple(notes), tuple(warnings), details)


def requirements() -> str:
    """Return requirements.txt of the device: numpy alone, since its image brings TensorRT."""
    lines = onnxruntime.requirements().splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("numpy"))


def _find_newest_opset(target: Target) -> int | None:
    """Return the newest opset that the target's TensorRT reads; None if it is unknown."""
    # ">=8.5" gives (8, 5), so the opset must be readable by the first parsers of TensorRT 8.
    oldest = version_tuple(target.engine_version.lstrip("<>="))
    return NEWEST_OPSET.get(oldest[0] if oldest else 10)


def _lower(model: onnx.ModelProto, target: Target) -> tuple[str, ...]:
    """Lower the opset for TensorRT 8, and return the operators that prevent it.

    torch writes opset 18 at least, and TensorRT 8 reads 17.
    """
    newest = _find_newest_opset(target)
    if newest != NEWEST_OPSET[8] or default_opset(model) <= newest:
        return ()
    return lower_opset(model, newest)


def _check_opset(model: onnx.ModelProto, target: Target, lacking: Sequence[str]) -> None:
    opset, newest = default_opset(model), _find_newest_opset(target)
    if newest is not None and opset > newest:
        why = f"it has opset {opset}; TensorRT {target.engine_version} reads up to {newest}"
        if lacking:
            why += f", which lacks what these nodes use: {', '.join(lacking)}"
        hint = f"engine.opset = {newest} in the profile"
        # The profile asks for it already, but a file keeps its own opset.
        if target.opset <= newest:
            hint = (
                f"export the model with opset {newest}: torch.onnx.export(opset_version={newest})"
            )
        raise EngineError(
            "engine-opset",
            "the ONNX is too new for the target's TensorRT",
            why=why,
            hint=hint,
        )


def _check_pairs(model: onnx.ModelProto) -> None:
    faults = list(_faults(model))
    if faults:
        raise EngineError(
            "engine-qdq",
            "TensorRT does not support the quantization of this ONNX",
            why=join_lines(faults, SHOWN),
            hint="--chain quantize:scheme=tensorrt:range=full,half on the float model",
        )


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    import onnx
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        title = f"{node.name} ({node.op_type})"
        if node.op_type not in having(Trait.QUANTIZES):
            if is_quantized(node.op_type) and is_standard(node):
                yield f"{title}: an integer operator; TensorRT needs Q/DQ pairs"
            continue
        # The inputs of a Q or DQ node are x, the scale and, optionally, the zero point.
        stored = constants.get(node.input[0])
        if stored is not None and stored.data_type == onnx.TensorProto.INT32:
            yield f"{title}: an int32 bias; TensorRT needs float"
        for name in node.input[2:]:
            if name in constants and numpy_helper.to_array(constants[name]).any():
                yield f"{title}: its zero point is not 0"
