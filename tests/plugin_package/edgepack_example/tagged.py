"""An engine: onnxruntime, with the name of the target in the model's metadata."""

from __future__ import annotations

from dataclasses import replace

from edgepack.engine import Built, onnxruntime
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

RUNTIME = "onnxruntime"


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check the model as edgepack's own engine does, and tag it."""
    import onnx

    built = onnxruntime.build(model, target, profiles)
    proto = onnx.load_model_from_string(built.model)
    proto.metadata_props.add(key="target", value=target.name)
    return replace(
        built,
        model=proto.SerializeToString(deterministic=True),
        notes=(*built.notes, f"Tagged with the name of the target, {target.name}."),
    )


def requirements() -> str:
    """Return the packages of edgepack's own engine."""
    return onnxruntime.requirements()
