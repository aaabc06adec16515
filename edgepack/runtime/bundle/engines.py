"""The ways in which a bundle's one model can run, as the index states them."""

from __future__ import annotations

import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import BundleError
from ..tensor import Tensor
from .document import Reader

ONNXRUNTIME = "onnxruntime"
CUDA = "onnxruntime-cuda"
TENSORRT = "tensorrt"
ENGINES = (ONNXRUNTIME, CUDA, TENSORRT)
MAX_VARIANTS = 16
# What builds and seals a TensorRT engine on the device.
FINISH = "python3 BUNDLE finish"

Shape = Tuple[int, ...]

# What a variant may need of a device, and how it is written. A need that this loader does not
# know is refused: it could not be checked.
_SPECIFIER = r"(>=|<|==)?[0-9]+(\.[0-9]+)*(,(>=|<|==)[0-9]+(\.[0-9]+)*)*\Z"
_NEEDS = {
    "arch": r"[a-z0-9_]+\Z",
    "compute_capability": _SPECIFIER,
    "engine_version": _SPECIFIER,
    "gpu": r"[ -~]+\Z",
}
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z"
# A built engine runs on just the GPU and the version that it was built on.
_EXACT = ("compute_capability", "engine_version", "gpu")


# Named tuples and no dataclasses: a bundle's loader is compiled anew at every start, and making
# the class of a dataclass takes longer than reading the index does.
class Variant(NamedTuple):
    """One way to run the model.

    Attributes:
        name: what `--variant` and the verdict call it.
        engine: one of ENGINES.
        needs: arch, isa (a list), compute_capability and engine_version (specifiers, as
            `device.satisfies` reads them) and gpu (its name); a key that is missing asks nothing.
        file: the entry of a built engine, which TensorRT alone has; None where the engine takes
            the ONNX, or builds itself from it on the device.
    """

    name: str
    engine: str
    needs: Mapping[str, Any] = {}
    file: Optional[str] = None

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on an NVIDIA GPU."""
        return self.engine in (CUDA, TENSORRT)

    @property
    def unfinished(self) -> bool:
        """Whether its engine has to be built on the device."""
        return self.engine == TENSORRT and self.file is None

    def to_json(self) -> Dict[str, Any]:
        """As `bundle.json` holds it."""
        return {
            "name": self.name,
            "engine": self.engine,
            "needs": dict(self.needs),
            "file": self.file,
        }


class EngineOptions(NamedTuple):
    """What an engine is built with on the device.

    Attributes:
        workspace_mb: memory that it may use while it works, in MiB; 0 for its own bound.
        dla_core: the deep-learning accelerator to use; None for none.
        profiles: input with a dynamic axis to its smallest, usual and largest shape.
    """

    workspace_mb: int = 0
    dla_core: Optional[int] = None
    profiles: Mapping[str, Tuple[Shape, Shape, Shape]] = {}

    def to_json(self) -> Dict[str, Any]:
        """As `bundle.json` holds them."""
        return {
            "workspace_mb": self.workspace_mb,
            "dla_core": self.dla_core,
            "profiles": {
                name: dict(zip(("min", "opt", "max"), map(list, shapes)))
                for name, shapes in self.profiles.items()
            },
        }


def read_variants(index: Reader, files: Mapping[str, Any]) -> Tuple[Variant, ...]:
    """The variants of an index. Raises BundleError for what is not one.

    Args:
        index: the whole document.
        files: the names that it lists.
    """
    variants = index.each("variants", lambda reader: _variant(reader, files))
    if not 0 < len(variants) <= MAX_VARIANTS:
        raise index.fault("there are {} variants".format(len(variants)))
    if len({variant.name for variant in variants}) != len(variants):
        raise index.fault("two variants have the same name")
    if sum(variant.unfinished for variant in variants) > 1:
        raise index.fault("two variants would build their engine on the device")
    return tuple(variants)


def _variant(reader: Reader, files: Mapping[str, Any]) -> Variant:
    name, engine = reader.get("name", str), reader.get("engine", str)
    if not re.match(_NAME, name):
        raise reader.fault("its name is {!r}".format(name))
    if engine not in ENGINES:
        raise BundleError(
            "bundle-engine",
            "the bundle asks for an engine that this loader does not have",
            why="it asks for {!r}; this loader has {}".format(engine, ", ".join(ENGINES)),
            hint="build it with a version of edgepack that ships this engine's loader",
        )
    needs, file = _needs(reader.at("needs")), reader.get("file", str, type(None))
    if file is not None:
        if engine != TENSORRT or file not in files or not file.startswith("engine/"):
            raise reader.fault("its file is {!r}".format(file))
        loose = [key for key in _EXACT if not _exact(key, needs.get(key, ""))]
        if loose:
            raise reader.fault("a built engine needs one exact {}".format(", ".join(loose)))
    return Variant(name, engine, needs, file)


def _exact(key: str, value: str) -> bool:
    return bool(value) if key == "gpu" else value.startswith("==") and "," not in value


def _needs(reader: Reader) -> Dict[str, Any]:
    for key in reader.value:
        if key == "isa":
            reader.each(key, Reader.text)
        elif key not in _NEEDS:
            raise reader.fault("it asks for {!r}, which this loader cannot check".format(key))
        elif not re.match(_NEEDS[key], reader.get(key, str)):
            raise reader.fault("its {} is {!r}".format(key, reader.value[key]))
    return dict(reader.value)


def read_options(reader: Reader, inputs: Sequence[Tensor]) -> EngineOptions:
    """The options of an index. Raises BundleError for what no engine can be built with."""
    workspace = reader.get("workspace_mb", int)
    core = reader.get("dla_core", int, type(None))
    if workspace < 0 or (core is not None and core < 0):
        raise reader.fault("a number is below 0")
    tensors = {tensor.name: tensor for tensor in inputs}
    stated = reader.at("profiles")
    profiles = {}
    for name in stated.value:
        if name not in tensors:
            raise stated.fault("{!r} is no input".format(name))
        profiles[name] = _profile(stated.at(name), tensors[name])
    return EngineOptions(workspace, core, profiles)


def _profile(reader: Reader, tensor: Tensor) -> Tuple[Shape, Shape, Shape]:
    shapes = tuple(tuple(reader.each(key, Reader.number)) for key in ("min", "opt", "max"))
    fits = all(
        len(shape) == tensor.rank
        and all(size > 0 and dim in (size, str(dim)) for size, dim in zip(shape, tensor.shape))
        for shape in shapes
    )
    if not fits or not all(a <= b <= c for a, b, c in zip(*shapes)):
        raise reader.fault("its shapes do not fit {}".format(tensor))
    smallest, usual, largest = shapes
    return smallest, usual, largest
