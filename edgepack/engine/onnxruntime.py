"""onnxruntime as an engine: it runs the ONNX itself, so building is proving that it will."""

from __future__ import annotations

from importlib import metadata

from edgepack.engine.built import Built
from edgepack.errors import EngineError
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

# The last releases that have wheels for the older Pythons that the loader supports.
OLDER_PYTHONS = (
    ("python_version < '3.9'", "1.24.4", "1.19.2"),
    ("python_version == '3.9'", "2.0.2", "1.19.2"),
    ("python_version == '3.10'", "2.2.6", "1.23.2"),
)
# The oldest that is supported, the newest that Python 3.8 has; and the newest ONNX that it reads.
OLDEST = "1.19"
MAX_IR_VERSION = 10
MAX_OPSET = 21


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check that the oldest supported onnxruntime reads this ONNX, and give it back.

    Raises EngineError where its IR version or opset is too new.
    """
    import onnx

    proto = onnx.load_model_from_string(model)
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if proto.ir_version > MAX_IR_VERSION or opset > MAX_OPSET:
        raise EngineError(
            "engine-too-old",
            "the ONNX is too new for the target's onnxruntime",
            why=f"IR version {proto.ir_version} and opset {opset}; "
            f"at most {MAX_IR_VERSION} and {MAX_OPSET} are read",
            hint="export it with an older opset",
        )
    return Built(model, ("onnxruntime runs the ONNX itself",))


def requirements(package: str = "onnxruntime") -> str:
    """requirements.txt of the device: exact versions for every Python that the loader supports.

    Args:
        package: which of onnxruntime's packages, which share their versions.
    """
    lines = [
        f"{name}=={version}; {marker}"
        for marker, numpy, onnxruntime in OLDER_PYTHONS
        for name, version in (("numpy", numpy), (package, onnxruntime))
    ]
    lines += [
        f"{name}=={version}; python_version >= '3.11'"
        for name, version in (("numpy", metadata.version("numpy")), (package, _version()))
    ]
    return "\n".join(lines) + "\n"


def _version() -> str:
    """Of the onnxruntime that is installed here, on a host with a GPU as onnxruntime-gpu."""
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return metadata.version("onnxruntime-gpu")
