"""onnxruntime as an engine: it runs the ONNX itself, so building is proving that it will."""

from __future__ import annotations

from importlib import metadata

from edgepack.errors import EngineError

# The last releases that have wheels for the older Pythons that the loader supports.
OLDER_PYTHONS = (
    ("python_version < '3.9'", "1.24.4", "1.19.2"),
    ("python_version == '3.9'", "2.0.2", "1.19.2"),
    ("python_version == '3.10'", "2.2.6", "1.23.2"),
)
# The newest ONNX that the oldest supported onnxruntime (1.19) reads.
MAX_IR_VERSION = 10
MAX_OPSET = 21


def build(model: bytes) -> bytes:
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
    return model


def requirements() -> str:
    """requirements.txt of the device: exact versions for every Python that the loader supports."""
    lines = [
        f"{package}=={version}; {marker}"
        for marker, numpy, onnxruntime in OLDER_PYTHONS
        for package, version in (("numpy", numpy), ("onnxruntime", onnxruntime))
    ]
    lines += [
        f"{package}=={metadata.version(package)}; python_version >= '3.11'"
        for package in ("numpy", "onnxruntime")
    ]
    return "\n".join(lines) + "\n"
