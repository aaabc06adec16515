"""Which of a bundle's variants runs on this device, and why no better one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from ..bundle.engines import CUDA, FINISH, ONNXRUNTIME, TENSORRT, Variant
from ..errors import DeviceError, InputError
from .machine import satisfies

if TYPE_CHECKING:
    from ..bundle.index import Index
    from ..bundle.seal import Sealed

REQUIREMENTS = (
    "pip install the versions in the bundle's requirements.txt:\n"
    "python3 BUNDLE info --requirements > requirements.txt"
)
PROVIDER = "CUDAExecutionProvider"


class PassedOver(NamedTuple):
    """A variant that was not taken, though it comes before the one that was."""

    variant: Variant
    fault: DeviceError

    def to_json(self) -> Dict[str, Any]:
        """As the verdict holds it."""
        named = {"name": self.variant.name, "engine": self.variant.engine}
        return {**named, **self.fault.to_json()}


class Choice(NamedTuple):
    """What runs on a device.

    Attributes:
        variant: the first that fits; None where none does.
        sealed: the engine that `finish` built for it here; None where it has its own, or none.
        fallback: whether it runs in another engine than the bundle was made for.
        passed_over: every better one, with the reason.
        device: as `here.Here`.
    """

    variant: Optional[Variant]
    sealed: Optional[Sealed]
    fallback: bool
    passed_over: Tuple[PassedOver, ...]
    device: Mapping[str, Any]

    def taken(self) -> Variant:
        """The variant. Raises DeviceError with every reason where none fits."""
        if self.variant is not None:
            return self.variant
        faults = [passed.fault for passed in self.passed_over]
        if len(faults) == 1:
            raise faults[0]
        raise DeviceError(
            "variant-none-fits",
            "the bundle can run in {} ways, and none fits this device".format(len(faults)),
            why="\n".join(
                "{}: {}: {}".format(passed.variant.name, passed.fault.what, passed.fault.why)
                for passed in self.passed_over
            ),
            hint="\n".join(dict.fromkeys(fault.hint for fault in faults)),
        )

    def to_json(self) -> Dict[str, Any]:
        """As the verdict holds it."""
        return {
            "name": self.variant.name if self.variant else None,
            "engine": self.variant.engine if self.variant else None,
            "sealed": self.sealed is not None,
            "fallback": self.fallback,
            "passed_over": [passed.to_json() for passed in self.passed_over],
        }


def told(passed: Mapping[str, Any]) -> str:
    """Why a variant was passed over and what to do, in one line; from the verdict's JSON."""
    why, hint = (" ".join(passed[key].split()) for key in ("why", "hint"))
    return "{}: {} ({})".format(passed["what"], why, hint)


def aloud(variant: Mapping[str, Any]) -> List[str]:
    """What must be said of a fallback: a line, and one for every reason; from its JSON."""
    if not variant["fallback"]:
        return []
    return [
        "FALLBACK: this runs in {}, not in the engine that the bundle was made for".format(
            variant["engine"]
        ),
        *("  not {}: {}".format(passed["name"], told(passed)) for passed in variant["passed_over"]),
    ]


def choose(
    index: Index,
    device: Mapping[str, Any],
    sealed: Union[Sealed, DeviceError, None] = None,
    *,
    only: str = "",
    refused: Optional[Mapping[str, DeviceError]] = None,
) -> Choice:
    """The first variant that fits; a sealed engine that fits comes before all.

    Args:
        index: of the bundle.
        device: as `here.Here`.
        sealed: the engine beside the bundle; None for none, the reason where it is not to be used.
        only: the name of the one variant that may be taken; "" for any.
        refused: variants that turned out not to start here, by name.

    Raises InputError where `only` names none. That none fits is told by `Choice.taken`.
    """
    candidates = [variant for variant in index.variants if only in ("", variant.name)]
    if not candidates:
        raise InputError(
            "variant-unknown",
            "the bundle has no variant named {!r}".format(only),
            why="it has {}".format(", ".join(variant.name for variant in index.variants)),
            hint="python3 BUNDLE info",
        )

    def fault_of(variant: Variant) -> Optional[DeviceError]:
        started = (refused or {}).get(variant.name)
        return started or unfit(variant, index, device, sealed)

    first = [variant for variant in candidates if variant.unfinished and not fault_of(variant)]
    passed: List[PassedOver] = []
    for variant in first + candidates:
        fault = fault_of(variant)
        if fault is None:
            own = sealed if variant.unfinished and not isinstance(sealed, DeviceError) else None
            fallback = variant.engine != index.variants[0].engine
            return Choice(variant, own, fallback, tuple(passed), device)
        passed.append(PassedOver(variant, fault))
    return Choice(None, None, False, tuple(passed), device)


def standing_in(index: Index, device: Mapping[str, Any]) -> Choice:
    """What a build host runs in the device's place: the ONNX in onnxruntime, on the CPU."""
    same = [variant for variant in index.variants if variant.engine == ONNXRUNTIME]
    variant = same[0] if same else Variant("stand-in", ONNXRUNTIME)
    fault = _without_engine(variant, device)
    passed = () if fault is None else (PassedOver(variant, fault),)
    return Choice(None if fault else variant, None, False, passed, device)


def unfit(
    variant: Variant,
    index: Index,
    device: Mapping[str, Any],
    sealed: Union[Sealed, DeviceError, None],
) -> Optional[DeviceError]:
    """Why a variant does not run on a device; None where it does."""
    fault = unmet(variant, index, device)
    if fault is not None or not variant.unfinished:
        return fault
    if isinstance(sealed, DeviceError):
        return sealed
    if sealed is None:
        return DeviceError(
            "engine-unfinished",
            "its engine has not been built on this device yet",
            why="a TensorRT engine is bound to its GPU and version, so it is built where it runs",
            hint=FINISH,
        )
    return sealed.other_than(index, variant, device)


def unmet(variant: Variant, index: Index, device: Mapping[str, Any]) -> Optional[DeviceError]:
    """What of a variant's needs a device does not meet, its engine's file aside."""
    return (
        _other_processor(variant, index, device)
        or (_without_gpu(variant, device) if variant.on_gpu else None)
        or _without_engine(variant, device)
    )


def _other_processor(
    variant: Variant, index: Index, device: Mapping[str, Any]
) -> Optional[DeviceError]:
    arch = variant.needs.get("arch", device["arch"])
    if arch != device["arch"]:
        return DeviceError(
            "device-arch",
            "it is for another kind of processor",
            why="it is for {}; this is {}".format(arch, device["arch"]),
            hint="build it for a target profile of this device: edgepack targets list",
        )
    # The floor of the whole bundle was asked for before: what the system does not tell is held
    # against a variant only where it needs more than that.
    told = index.device.get("isa", ()) if device["isa"] is None else device["isa"]
    lacking = [flag for flag in variant.needs.get("isa", ()) if flag not in told]
    if not lacking:
        return None
    unknown = device["isa"] is None
    return DeviceError(
        "device-isa",
        "this system does not tell what its processor has"
        if unknown
        else "this processor is older than it needs",
        why="it needs {}, and the safest variant is taken".format(", ".join(lacking))
        if unknown
        else "it lacks {}: {}".format(", ".join(lacking), device["cpu"]),
        hint="build for a target profile with a lower floor",
    )


def _without_gpu(variant: Variant, device: Mapping[str, Any]) -> Optional[DeviceError]:
    if device["gpu"] is None:
        return DeviceError(
            "gpu-missing",
            "there is no usable NVIDIA GPU",
            why=device["gpu_why"],
            hint="check the driver: nvidia-smi, on a Jetson tegrastats",
        )
    wanted, found = variant.needs.get("compute_capability", ""), device["compute_capability"]
    name = variant.needs.get("gpu", device["gpu"])
    if satisfies(found, wanted) and name == device["gpu"]:
        return None
    return DeviceError(
        "gpu-other",
        "it is for another GPU",
        why="it needs {}; this is {} of compute capability {}".format(
            " and ".join(
                filter(None, (variant.needs.get("gpu"), wanted and "capability " + wanted))
            ),
            device["gpu"],
            found,
        ),
        hint="build it for a target profile of this GPU: edgepack targets list",
    )


def _without_engine(variant: Variant, device: Mapping[str, Any]) -> Optional[DeviceError]:
    package = TENSORRT if variant.engine == TENSORRT else ONNXRUNTIME
    title = "TensorRT" if package == TENSORRT else package
    version, wanted = device[package], variant.needs.get("engine_version", "")
    if version is None:
        return DeviceError(
            "engine-missing",
            "{} cannot be {} on this device".format(
                title, "used" if package == TENSORRT else "imported"
            ),
            why=device[package + "_why"],
            hint="TensorRT comes with JetPack or from NVIDIA's packages; on a desktop: "
            "pip install tensorrt"
            if package == TENSORRT
            else REQUIREMENTS,
        )
    if not satisfies(version, wanted):
        return DeviceError(
            "engine-version",
            "this {} is not one that the bundle needs".format(title),
            why="it needs {}; this is {}".format(wanted, version),
            hint="build it for a target profile with this version"
            if package == TENSORRT
            else "pip install '{}{}'".format(
                "onnxruntime-gpu" if variant.engine == CUDA else package,
                wanted if wanted[:1] in "<>=" else ">=" + wanted,
            ),
        )
    if variant.engine == CUDA and PROVIDER not in device["onnxruntime_providers"].split(", "):
        return DeviceError(
            "engine-provider",
            "this onnxruntime cannot use a GPU",
            why="{} is not in get_available_providers(): {}; the packages onnxruntime and "
            "onnxruntime-gpu share one name, and the last one installed wins".format(
                PROVIDER, device["onnxruntime_providers"]
            ),
            hint="pip uninstall onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu",
        )
    return None
