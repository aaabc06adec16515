"""Choose the variant that runs on this device, and keep the reasons against better ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Mapping, NamedTuple, Optional, Tuple, Union

from ..bundle.engines import CUDA, FINISH, ONNXRUNTIME, OPENVINO, TENSORRT, Variant
from ..errors import DeviceError, InputError
from .machine import satisfies

if TYPE_CHECKING:
    from ..bundle.index import Index
    from ..bundle.seal import Sealed
    from ..documents import DeviceFacts, PassedOverDocument, VariantDocument

REQUIREMENTS = (
    "pip install the versions in the bundle's requirements.txt:\n"
    "python3 BUNDLE info --requirements > requirements.txt"
)


class PassedOver(NamedTuple):
    """Variant that was skipped although it ranks above the chosen one."""

    variant: Variant
    fault: DeviceError

    def to_json(self) -> PassedOverDocument:
        """Return the entry of the verdict."""
        return {
            "name": self.variant.name,
            "engine": self.variant.engine,
            **self.fault.to_json(),
        }


class Choice(NamedTuple):
    """Variant that runs on a device, and the reasons for it.

    Attributes:
        variant: the first that fits; None if none does.
        sealed: the engine that `finish` built for it here; None if it needs none.
        fallback: True if it runs in another engine than the bundle was built for. The build
            verifies every engine for CPUs, so that none of them is a fallback of another.
        passed_over: the better variants that were skipped, with the reasons.
        device: device info, from `device_info.device_info`.
    """

    variant: Optional[Variant]
    sealed: Optional[Sealed]
    fallback: bool
    passed_over: Tuple[PassedOver, ...]
    device: DeviceFacts

    def require_variant(self) -> Variant:
        """Return the variant. Raises DeviceError with every reason if none fits."""
        if self.variant is not None:
            return self.variant
        if len(self.passed_over) == 1:
            raise self.passed_over[0].fault
        reasons, hints = [], []
        for variant, fault in self.passed_over:
            reasons.append(f"{variant.name}: {fault.what}: {fault.why}")
            hints.append(fault.hint)
        raise DeviceError(
            "variant-none-fits",
            f"none of the bundle's {len(reasons)} variants fits this device",
            why="\n".join(reasons),
            # Several variants may have the same remedy, which is named once.
            hint="\n".join(dict.fromkeys(hints)),
        )

    def to_json(self) -> VariantDocument:
        """Return the entry of the verdict."""
        name = engine = None
        if self.variant is not None:
            name, engine = self.variant.name, self.variant.engine
        document: VariantDocument = {
            "name": name,
            "engine": engine,
            "sealed": self.sealed is not None,
            "fallback": self.fallback,
            "passed_over": [passed.to_json() for passed in self.passed_over],
        }
        if self.variant is not None and self.variant.settings.to_json():
            document["settings"] = self.variant.settings.to_json()
        return document


def format_skip_reason(passed: PassedOverDocument) -> str:
    """Format a skipped variant of the verdict's JSON: the reason and the remedy, in one line."""
    # Collapse the line breaks of both texts into spaces.
    why, hint = " ".join(passed["why"].split()), " ".join(passed["hint"].split())
    return f"{passed['what']}: {why} ({hint})"


def format_fallback(variant: VariantDocument) -> List[str]:
    """Format the warning for a fallback: a line, and one per skipped variant; from its JSON.

    Skipped variants of which none makes a fallback are a note.
    """
    if variant["name"] is None or not (variant["fallback"] or variant["passed_over"]):
        return []
    lines = [f"note: running {variant['name']}, not the variant that the build ranks first"]
    if variant["fallback"]:
        engine = variant["engine"]
        lines = [f"FALLBACK: running in {engine}, not in the engine that the bundle was built for"]
    for passed in variant["passed_over"]:
        lines.append(f"  not {passed['name']}: {format_skip_reason(passed)}")
    return lines


def choose(
    index: Index,
    device: DeviceFacts,
    sealed: Union[Sealed, DeviceError, None] = None,
    *,
    only: str = "",
    refused: Optional[Mapping[str, DeviceError]] = None,
) -> Choice:
    """Choose the first variant that fits; a sealed engine that fits comes before all.

    Args:
        index: of the bundle.
        device: device info, from `device_info.device_info`.
        sealed: the engine beside the bundle; None for none, the reason if it cannot be used.
        only: the name of the only variant to consider; "" for any.
        refused: errors of variants that did not start here, by name.

    Raises InputError if `only` is not a variant's name; `require_variant` raises if none fits.
    """
    candidates = [variant for variant in index.variants if only in ("", variant.name)]
    if not candidates:
        raise InputError(
            "variant-unknown",
            f"the bundle has no variant named {only!r}",
            why=f"it has {', '.join(variant.name for variant in index.variants)}",
            hint="python3 BUNDLE info lists them",
        )

    def fault_of(variant: Variant) -> Optional[DeviceError]:
        start_error = (refused or {}).get(variant.name)
        return start_error or check_variant(variant, index, device, sealed)

    # With variants [cuda, tensorrt, cpu] and an engine finished for tensorrt, the order is
    # tensorrt, cuda, tensorrt, cpu: the user built that engine here, so it ranks first.
    finished = [variant for variant in candidates if variant.unfinished and not fault_of(variant)]
    passed: List[PassedOver] = []
    for variant in finished + candidates:
        fault = fault_of(variant)
        if fault is None:
            engine = None
            if variant.unfinished and not isinstance(sealed, DeviceError):
                engine = sealed
            first = index.variants[0]
            fallback = variant.engine != first.engine and (first.on_gpu or variant.on_gpu)
            return Choice(variant, engine, fallback, tuple(passed), device)
        passed.append(PassedOver(variant, fault))
    return Choice(None, None, False, tuple(passed), device)


def choose_stand_in(index: Index, device: DeviceFacts) -> Choice:
    """Choose a build host's substitute for the device: the ONNX in onnxruntime, on the CPU."""
    variant = Variant("stand-in", ONNXRUNTIME)
    for candidate in index.variants:
        if candidate.engine == ONNXRUNTIME:
            variant = candidate
            break
    fault = _without_engine(variant, device)
    if fault is not None:
        return Choice(None, None, False, (PassedOver(variant, fault),), device)
    return Choice(variant, None, False, (), device)


def check_variant(
    variant: Variant,
    index: Index,
    device: DeviceFacts,
    sealed: Union[Sealed, DeviceError, None],
) -> Optional[DeviceError]:
    """Return the reason against running a variant on a device; None if it runs."""
    fault = check_requirements(variant, index, device)
    if fault is not None or not variant.unfinished:
        return fault
    if isinstance(sealed, DeviceError):
        return sealed
    if sealed is None:
        return DeviceError(
            "engine-unfinished",
            "its engine has not been built on this device yet",
            why="a TensorRT engine only runs on the GPU and version that it was built with",
            hint=FINISH,
        )
    return sealed.check_match(index, variant, device)


def check_requirements(
    variant: Variant, index: Index, device: DeviceFacts
) -> Optional[DeviceError]:
    """Return a requirement that a device does not meet, apart from the engine's file; or None."""
    fault = _other_processor(variant, index, device)
    if fault is None and variant.on_gpu:
        from .gpu_checks import check_gpu

        fault = check_gpu(variant, device)
    return fault or _without_engine(variant, device)


def _other_processor(variant: Variant, index: Index, device: DeviceFacts) -> Optional[DeviceError]:
    arch = variant.needs.get("arch", device["arch"])
    if arch != device["arch"]:
        return DeviceError(
            "device-arch",
            "it is for another kind of processor",
            why=f"it is for {arch}; this is {device['arch']}",
            hint="build it for a target profile of this device: edgepack targets list",
        )
    # `machine.require` has checked the whole bundle's minimum before. A system that does not
    # report its instruction sets is assumed to have that minimum and nothing more.
    available = device["isa"]
    if available is None:
        available = index.device.get("isa", [])
    lacking = [flag for flag in variant.needs.get("isa", ()) if flag not in available]
    if not lacking:
        return None
    what = "this processor is older than it needs"
    why = f"it lacks {', '.join(lacking)}: {device['cpu']}"
    if device["isa"] is None:
        what = "this system does not report the processor's instruction sets"
        why = f"it needs {', '.join(lacking)}; the safest variant is used instead"
    return DeviceError(
        "device-isa", what, why=why, hint="build for a target profile with lower requirements"
    )


def _without_engine(variant: Variant, device: DeviceFacts) -> Optional[DeviceError]:
    if variant.engine == TENSORRT:
        from .gpu_checks import check_tensorrt

        return check_tensorrt(variant, device)
    name = "onnxruntime"
    if variant.engine == OPENVINO:
        name, version, why = "OpenVINO", device["openvino"], device.get("openvino_why", "")
    else:
        version, why = device["onnxruntime"], device.get("onnxruntime_why", "")
    if version is None:
        return DeviceError(
            "engine-missing",
            f"{name} cannot be imported on this device",
            why=why,
            hint=REQUIREMENTS,
        )
    required = variant.needs.get("engine_version", "")
    if not satisfies(version, required):
        package = name.lower()
        if variant.engine == CUDA:
            package = "onnxruntime-gpu"
        # A bare version is the minimum: "1.18" installs as ">=1.18".
        specifier = required
        if required[:1] not in "<>=":
            specifier = ">=" + required
        return DeviceError(
            "engine-version",
            f"the bundle needs another version of {name}",
            why=f"it needs {required}; this is {version}",
            hint=f"pip install '{package}{specifier}'",
        )
    if variant.engine == CUDA:
        from .gpu_checks import check_provider

        return check_provider(device)
    return None
