"""onnxruntime's CUDA provider as an engine: it runs the ONNX itself, in fp16 where that is fp16.

The CPU provider does not: it computes an fp16 graph in float32 and drops the roundings between.
So the loader writes them out wherever a CPU stands in for the GPU (`runtime.session.rounding`);
for that it has to know which tensors are fp16: here their types are written into the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.engine import onnxruntime
from edgepack.engine.built import Built
from edgepack.runtime.session.onnx_session import import_engine
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

if TYPE_CHECKING:
    import onnx

# The package's extras bring CUDA and cuDNN as wheels; releases before 1.21 have none, and pip
# says so and goes on.
PACKAGE = "onnxruntime-gpu[cuda,cudnn]"


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check that the oldest supported onnxruntime reads this ONNX, and name its fp16 tensors.

    Raises EngineError where its IR version or opset is too new.
    """
    import onnx

    onnxruntime.build(model, target, profiles)
    proto = onnx.load_model_from_string(model)
    count = name_half_tensors(proto)
    told = (
        f"on this host's CPU {count} fp16 tensors are computed in float32 and rounded, as a GPU "
        "stores them"
        if count
        else "nothing in the ONNX is fp16: it runs in float32 on the GPU, too"
    )
    return Built(
        proto.SerializeToString(deterministic=True),
        ("onnxruntime's CUDA provider runs the ONNX itself", told),
        (
            "no GPU has run this: the answers and the quality are those of this host's CPU; "
            "verify on the GPU proves that it computes the same",
        ),
        {"half_tensors": count},
    )


def name_half_tensors(model: onnx.ModelProto) -> int:
    """Write every fp16 tensor that a node makes into `value_info`, in place; how many there are.

    Those among the outputs have their types there. onnxruntime tells the types: onnx's inference
    knows no operators but its own, and stops at a node that stands before its inputs.
    """
    import onnx

    graph = model.graph
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in known]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    ort = import_engine()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    half = [
        value.name
        for value in session.get_outputs()
        if value.type == "tensor(float16)" and value.name not in known
    ]
    named = {value.name for value in graph.value_info}
    for name in half:
        if name not in named:
            graph.value_info.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None)
            )
    return len(half)


def requirements() -> str:
    """requirements.txt of the device: exact versions for every Python that the loader supports.

    There are wheels for aarch64 too, but they hold kernels for data-centre GPUs alone and none
    for the Jetson's.
    """
    return onnxruntime.requirements(PACKAGE)
