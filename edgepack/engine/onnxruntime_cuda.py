"""onnxruntime's CUDA provider as an engine: it runs the ONNX directly, fp16 tensors included.

The CPU provider computes an fp16 graph in float32 and drops the roundings between nodes. The
loader therefore inserts them when a CPU stands in for the GPU (`runtime.session.rounding`). It
needs the types of the fp16 tensors for that, so the build writes them into the graph.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from edgepack.engine import onnxruntime
from edgepack.engine.built import Built
from edgepack.onnx_tools.copies import with_outputs
from edgepack.onnx_tools.sessions import create_session
from edgepack.onnx_tools.walk import names_of
from edgepack.onnx_tools.writer import serialised
from edgepack.runtime.bundle.engines import CUDA
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

if TYPE_CHECKING:
    import onnx

RUNTIME = CUDA
# The extras install CUDA and cuDNN as wheels. Releases before 1.21 have no such extras, of which
# pip only warns.
PACKAGE = "onnxruntime-gpu[cuda,cudnn]"


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check that the oldest supported onnxruntime reads this ONNX, and name its fp16 tensors.

    Raises EngineError if its IR version or opset is too new.
    """
    import onnx

    onnxruntime.build(model, target, profiles)
    proto = onnx.load_model_from_string(model)
    count = name_half_tensors(proto)
    _name_nodes(proto)
    note = "the ONNX has no fp16 tensors: it runs in float32 on the GPU too"
    if count:
        note = (
            f"this host's CPU computes {count} fp16 tensors in float32 and rounds them to fp16, "
            "as a GPU stores them"
        )
    return Built(
        serialised(proto),
        ("onnxruntime's CUDA provider runs the ONNX itself", note),
        (
            "not run on a GPU: answers and quality were measured on this host's CPU; "
            "run verify on the device to check that its GPU agrees",
        ),
        {"half_tensors": count},
    )


def name_half_tensors(model: onnx.ModelProto) -> int:
    """Write the type of every fp16 tensor between nodes into `value_info`, in place.

    Graph outputs are skipped, since they carry their types already. onnxruntime infers the types:
    onnx's own inference supports only standard operators, and stops at a node that precedes its
    inputs.

    Returns the number of fp16 tensors.
    """
    import onnx

    # A copy of the model gets every tensor between nodes as an output without a type, and a
    # session reports the types: for x -> Cast -> h -> MatMul -> y it adds h, of tensor(float16).
    graph = model.graph
    outputs = names_of(graph.output)
    computed = filter(None, itertools.chain.from_iterable(node.output for node in graph.node))
    inner = [name for name in computed if name not in outputs]
    if not inner:
        return 0
    session = create_session(with_outputs(model, inner), optimization="none")
    half = [value.name for value in session.get_outputs() if value.type == "tensor(float16)"]
    typed = names_of(graph.value_info)
    for name in half:
        if name not in typed:
            graph.value_info.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None)
            )
    return len(half)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name the nodes without a name, by which the device counts what its GPU took."""
    names = names_of(model.graph.node)
    for number, node in enumerate(model.graph.node):
        if not node.name and f"{node.op_type}_{number}" not in names:
            node.name = f"{node.op_type}_{number}"


def requirements() -> str:
    """Return requirements.txt of the device: exact versions for every supported Python.

    The aarch64 wheels have kernels for data-centre GPUs only, and none for a Jetson's.
    """
    return onnxruntime.requirements(PACKAGE)
