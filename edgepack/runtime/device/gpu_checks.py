"""Requirements of the variants that run on a GPU; a bundle for CPUs does not carry this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from ..bundle.engines import PROVIDER, Variant
from ..errors import DeviceError
from .machine import satisfies

if TYPE_CHECKING:
    from ..documents import DeviceFacts


def check_gpu(variant: Variant, device: DeviceFacts) -> Optional[DeviceError]:
    """Return the reason against this device's GPU; None if it fits."""
    if device["gpu"] is None:
        return DeviceError(
            "gpu-missing",
            "there is no usable NVIDIA GPU",
            why=device["gpu_why"],
            hint="check the driver with nvidia-smi, or tegrastats on a Jetson",
        )
    # A built engine names its GPU and exactly its capability, "==8.7"; a variant whose engine is
    # still to be built may state a minimum, or nothing.
    required = variant.needs.get("compute_capability", "")
    actual = device["compute_capability"] or ""
    name = variant.needs.get("gpu", device["gpu"])
    if satisfies(actual, required) and name == device["gpu"]:
        return None
    needs = filter(None, (variant.needs.get("gpu"), required and "capability " + required))
    return DeviceError(
        "gpu-other",
        "it is for another GPU",
        why=f"it needs {' and '.join(needs)}; "
        f"this is {device['gpu']} of compute capability {actual}",
        hint="build it for a target profile of this GPU: edgepack targets list",
    )


def check_tensorrt(variant: Variant, device: DeviceFacts) -> Optional[DeviceError]:
    """Return the reason against this device's TensorRT; None if it fits."""
    version, required = device["tensorrt"], variant.needs.get("engine_version", "")
    if version is None:
        return DeviceError(
            "engine-missing",
            "TensorRT cannot be used on this device",
            why=device["tensorrt_why"],
            hint="TensorRT comes with JetPack or from NVIDIA's packages; on a desktop: "
            "pip install tensorrt",
        )
    if not satisfies(version, required):
        return DeviceError(
            "engine-version",
            "the bundle needs another version of TensorRT",
            why=f"it needs {required}; this is {version}",
            hint="build it for a target profile with this version",
        )
    return None


def check_provider(device: DeviceFacts) -> Optional[DeviceError]:
    """Return the reason against onnxruntime on a GPU; None if it can use one."""
    # "CUDAExecutionProvider, CPUExecutionProvider" with onnxruntime-gpu.
    if PROVIDER not in device["onnxruntime_providers"].split(", "):
        return DeviceError(
            "engine-provider",
            "this onnxruntime cannot use a GPU",
            why=f"{PROVIDER} is not in get_available_providers(): "
            f"{device['onnxruntime_providers']}; the packages onnxruntime and onnxruntime-gpu "
            "share one name, and the last one installed wins",
            hint="pip uninstall onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu",
        )
    return None
