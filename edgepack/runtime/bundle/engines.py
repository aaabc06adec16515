"""Variants of a bundle: the ways to run its one model, read from the index."""

from __future__ import annotations

import re
from typing import (
    TYPE_CHECKING,
    Container,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from ..errors import BundleError
from ..strict_json import Reader
from ..tensor import Tensor

if TYPE_CHECKING:
    from ..documents import EngineOptionsEntry, SettingsEntry, VariantEntry, VariantNeeds

ONNXRUNTIME = "onnxruntime"
CUDA = "onnxruntime-cuda"
TENSORRT = "tensorrt"
OPENVINO = "openvino"
ENGINES = (ONNXRUNTIME, CUDA, TENSORRT, OPENVINO)
# Precisions of an engine's float arithmetic; bfloat16 needs OpenVINO, and a CPU that has it.
F32, BF16 = "f32", "bf16"
PRECISIONS = (F32, BF16)
MAX_THREADS = 4096
# Gates of fidelity that a variant may have of its own, with the range of each bound.
FIDELITY = {"snr_db": (-999.0, 999.0), "agreement": (0.0, 1.0)}
# onnxruntime's name of its engine for NVIDIA GPUs.
PROVIDER = "CUDAExecutionProvider"
MAX_VARIANTS = 16
# Command that builds and seals a TensorRT engine on the device.
FINISH = "python3 BUNDLE finish"

Shape = Tuple[int, ...]

# Format of each requirement that a variant may state. An unknown requirement is refused, since
# this loader could not check it. Specifiers look like "1.18", "==8.7" or ">=10.3,<11".
_SPECIFIER = r"(>=|<|==)?[0-9]+(\.[0-9]+)*(,(>=|<|==)[0-9]+(\.[0-9]+)*)*\Z"
_NEEDS = {
    "arch": r"[a-z0-9_]+\Z",
    "compute_capability": _SPECIFIER,
    "engine_version": _SPECIFIER,
    "gpu": r"[ -~]+\Z",
}
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z"


# Named tuples instead of dataclasses: a bundle's loader is compiled anew at every start, and
# creating a dataclass takes longer than reading the index.
class Settings(NamedTuple):
    """Settings of an engine on the CPU; the defaults are the engine's own.

    Attributes:
        precision: one of PRECISIONS, for float arithmetic; bf16 only in OpenVINO.
        threads: threads within an operator; 0 takes every physical core.
        spinning: let onnxruntime's threads spin while they wait; None for its default.
    """

    precision: str = F32
    threads: int = 0
    spinning: Optional[bool] = None

    def to_json(self) -> SettingsEntry:
        """Return the settings that are not the default."""
        entry: SettingsEntry = {}
        if self.precision != F32:
            entry["precision"] = self.precision
        if self.threads:
            entry["threads"] = self.threads
        if self.spinning is not None:
            entry["spinning"] = self.spinning
        return entry


DEFAULTS = Settings()


class Variant(NamedTuple):
    """Way to run the model.

    Attributes:
        name: its name in `--variant` and in the verdict.
        engine: one of ENGINES.
        needs: arch, isa (a list), compute_capability and engine_version (specifiers, as
            `machine.satisfies` reads them) and gpu (its name); an absent key requires nothing.
        file: the entry of a built engine, which only TensorRT has; None if the engine runs the
            ONNX, or is built from it on the device.
        settings: of the engine.
        fidelity: gate to bound, in place of the bundle's gates of fidelity; empty for those. An
            engine other than the one that gave the stored answers rounds differently.
    """

    name: str
    engine: str
    needs: VariantNeeds = {}
    file: Optional[str] = None
    settings: Settings = DEFAULTS
    fidelity: Mapping[str, float] = {}

    @property
    def on_gpu(self) -> bool:
        """True for an engine that runs on an NVIDIA GPU."""
        return self.engine in (CUDA, TENSORRT)

    @property
    def unfinished(self) -> bool:
        """True if the engine has yet to be built on the device."""
        return self.engine == TENSORRT and self.file is None

    def to_json(self) -> VariantEntry:
        """Return the entry of `bundle.json`."""
        entry: VariantEntry = {
            "name": self.name,
            "engine": self.engine,
            "needs": self.needs,
            "file": self.file,
        }
        settings = self.settings.to_json()
        if settings:
            entry["settings"] = settings
        if self.fidelity:
            entry["fidelity"] = dict(self.fidelity)
        return entry


class EngineOptions(NamedTuple):
    """Options for building an engine on the device.

    Attributes:
        workspace_mb: memory limit for its kernels, in MiB; 0 for TensorRT's default.
        dla_core: the deep-learning accelerator to use; None for none.
        profiles: input with a dynamic axis -> its smallest, usual and largest shape.
    """

    workspace_mb: int = 0
    dla_core: Optional[int] = None
    profiles: Mapping[str, Tuple[Shape, Shape, Shape]] = {}

    def to_json(self) -> EngineOptionsEntry:
        """Return the entry of `bundle.json`."""
        profiles: Dict[str, Dict[str, List[int]]] = {}
        for name, (smallest, usual, largest) in self.profiles.items():
            profiles[name] = {"min": list(smallest), "opt": list(usual), "max": list(largest)}
        return {
            "workspace_mb": self.workspace_mb,
            "dla_core": self.dla_core,
            "profiles": profiles,
        }


def read_variants(index: Reader, files: Container[str]) -> Tuple[Variant, ...]:
    """Read the variants of an index. Raises BundleError for an invalid one.

    Args:
        index: the whole document.
        files: names of the files that it lists.
    """
    variants = index.each("variants", lambda reader: _variant(reader, files))
    if not 0 < len(variants) <= MAX_VARIANTS:
        raise index.fault(f"it has {len(variants)} variants; 1 to {MAX_VARIANTS} are allowed")
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise index.fault("two variants have the same name")
    if sum(variant.unfinished for variant in variants) > 1:
        raise index.fault("two variants build their engine on the device")
    return variants


def _variant(reader: Reader, files: Container[str]) -> Variant:
    name, engine = reader.get("name", str), reader.get("engine", str)
    if not re.match(_NAME, name):
        raise reader.fault(f"its name is {name!r}")
    if engine not in ENGINES:
        raise BundleError(
            "bundle-engine",
            "the bundle requires an engine that this loader does not support",
            why=f"it requires {engine!r}; this loader supports {', '.join(ENGINES)}",
            hint="build it with a version of edgepack that supports this engine",
        )
    needs, file = _needs(reader.at("needs")), reader.get("file", str, type(None))
    if file is not None:
        if engine != TENSORRT or file not in files or not file.startswith("engine/"):
            raise reader.fault(f"its file is {file!r}")
        _require_exact(reader, needs)
    settings = DEFAULTS
    if "settings" in reader.value:
        settings = read_settings(reader.at("settings"), engine)
    fidelity: Dict[str, float] = {}
    if "fidelity" in reader.value:
        fidelity = _bounds(reader.at("fidelity"))
    return Variant(name, engine, needs, file, settings, fidelity)


def read_settings(reader: Reader, engine: str) -> Settings:
    """Read the settings of an engine. Raises BundleError for unknown or invalid ones."""
    for key in reader.value:
        if key not in Settings._fields:
            raise reader.fault(f"this loader has no setting {key!r}")
    precision, threads, spinning = DEFAULTS
    if "precision" in reader.value:
        precision = reader.get("precision", str)
    if "threads" in reader.value:
        threads = reader.get("threads", int)
    if "spinning" in reader.value:
        spinning = reader.get("spinning", bool)
    if precision not in PRECISIONS or (precision != F32 and engine != OPENVINO):
        raise reader.fault(f"its precision is {precision!r}, which {engine} does not have")
    if not 0 <= threads <= MAX_THREADS:
        raise reader.fault(f"its threads are {threads}")
    return Settings(precision, threads, spinning)


def _bounds(reader: Reader) -> Dict[str, float]:
    """Read the gates of fidelity of one variant: its SNR, and its share of equal decisions."""
    bounds: Dict[str, float] = {}
    for gate in reader.value:
        if gate not in FIDELITY:
            raise reader.fault(f"this loader has no gate {gate!r} of one variant")
        bounds[gate] = reader.get(gate, int, float)
        least, most = FIDELITY[gate]
        if not least <= bounds[gate] <= most:
            raise reader.fault(f"the gate {gate} cannot be {bounds[gate]}")
    return bounds


def _require_exact(reader: Reader, needs: VariantNeeds) -> None:
    """Raise BundleError unless the needs of a built engine name one GPU and one version."""
    specifiers = {
        "compute_capability": needs.get("compute_capability", ""),
        "engine_version": needs.get("engine_version", ""),
    }
    loose = []
    for key, specifier in specifiers.items():
        # ">=10" is not precise enough, and nor is "==10,<11".
        if not specifier.startswith("==") or "," in specifier:
            loose.append(key)
    if not needs.get("gpu"):
        loose.append("gpu")
    if loose:
        raise reader.fault(f"a built engine needs an exact {', '.join(loose)}")


def _needs(reader: Reader) -> VariantNeeds:
    for key in reader.value:
        if key == "isa":
            reader.each(key, Reader.text)
        elif key not in _NEEDS:
            raise reader.fault(f"it requires {key!r}, which this loader cannot check")
        elif not re.match(_NEEDS[key], reader.get(key, str)):
            raise reader.fault(f"its {key} is {reader.value[key]!r}")
    needs: VariantNeeds = reader.value
    return needs


def read_options(reader: Reader, inputs: Sequence[Tensor]) -> EngineOptions:
    """Read the engine options of an index. Raises BundleError for invalid ones."""
    workspace = reader.get("workspace_mb", int)
    core = reader.get("dla_core", int, type(None))
    if workspace < 0 or (core is not None and core < 0):
        raise reader.fault("a number is below 0")
    tensors = {tensor.name: tensor for tensor in inputs}
    entries = reader.at("profiles")
    profiles = {}
    for name in entries.value:
        if name not in tensors:
            raise entries.fault(f"{name!r} is not an input")
        profiles[name] = _profile(entries.at(name), tensors[name])
    return EngineOptions(workspace, core, profiles)


def _profile(reader: Reader, tensor: Tensor) -> Tuple[Shape, Shape, Shape]:
    smallest, usual, largest = (reader.each(key, Reader.number) for key in ("min", "opt", "max"))
    fits = all(_shape_fits(shape, tensor) for shape in (smallest, usual, largest))
    if not fits or not all(a <= b <= c for a, b, c in zip(smallest, usual, largest)):
        raise reader.fault(f"its shapes do not fit {tensor}")
    return smallest, usual, largest


def _shape_fits(shape: Shape, tensor: Tensor) -> bool:
    if len(shape) != tensor.rank:
        return False
    # A dimension "batch" admits any positive size, a fixed dimension 3 only the size 3.
    for size, dim in zip(shape, tensor.shape):
        if size <= 0 or (isinstance(dim, int) and dim != size):
            return False
    return True
