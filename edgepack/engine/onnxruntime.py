"""onnxruntime as an engine: it runs the ONNX directly, so a build only checks the model."""

from __future__ import annotations

from importlib import metadata

from edgepack.engine.built import Built
from edgepack.errors import EngineError
from edgepack.onnx_tools.limits import NEWEST_IR, NEWEST_OPSET, OLDEST_ONNXRUNTIME, default_opset
from edgepack.runtime.bundle.engines import ONNXRUNTIME
from edgepack.runtime.session.tensorrt_build import Profiles
from edgepack.spec.target import Target

RUNTIME = ONNXRUNTIME
# Marker, numpy and onnxruntime: the last releases with wheels for the older Pythons that the
# loader supports.
OLDER_PYTHONS = (
    ("python_version < '3.9'", "1.24.4", "1.19.2"),
    ("python_version == '3.9'", "2.0.2", "1.19.2"),
    ("python_version == '3.10'", "2.2.6", "1.23.2"),
)


def build(model: bytes, target: Target, profiles: Profiles) -> Built:
    """Check that the oldest supported onnxruntime reads this ONNX, and return it unchanged.

    Raises EngineError if its IR version or opset is too new.
    """
    import onnx

    proto = onnx.load_model_from_string(model)
    opset = default_opset(proto)
    if proto.ir_version > NEWEST_IR or opset > NEWEST_OPSET:
        raise EngineError(
            "engine-too-old",
            "the ONNX is too new for the target's onnxruntime",
            why=f"IR version {proto.ir_version} and opset {opset}; "
            f"onnxruntime {OLDEST_ONNXRUNTIME} reads at most {NEWEST_IR} and {NEWEST_OPSET}",
            hint="export it with an older opset",
        )
    return Built(model, ("onnxruntime runs the ONNX itself",))


def requirements(package: str = "onnxruntime") -> str:
    """Return requirements.txt of the device: exact versions for every supported Python.

    Args:
        package: one of onnxruntime's packages, which share their versions.
    """
    # Two lines for each Python, of which pip installs those whose marker holds:
    #   numpy==1.24.4; python_version < '3.9'
    #   onnxruntime==1.19.2; python_version < '3.9'
    newest = ("python_version >= '3.11'", metadata.version("numpy"), _version())
    lines: list[str] = []
    for marker, numpy, onnxruntime in (*OLDER_PYTHONS, newest):
        lines += [f"numpy=={numpy}; {marker}", f"{package}=={onnxruntime}; {marker}"]
    return "\n".join(lines) + "\n"


def _version() -> str:
    """Return the version of the installed onnxruntime, or of onnxruntime-gpu on a GPU host."""
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return metadata.version("onnxruntime-gpu")
