"""Target profiles: device, engine, chain and gates of a build."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from edgepack.errors import SpecError
from edgepack.spec import toml_reader
from edgepack.spec.documents import TargetDocument, WheelsTable
from edgepack.spec.suggestions import did_you_mean

# Longest chain of `extends`; a profile that extends itself exceeds it.
MAX_EXTENDS = 8
_NO_WHEELS: WheelsTable = {"platforms": [], "python": ""}


@dataclass(frozen=True)
class Target:
    """Device profile, as declared in `targets/*.toml`.

    Attributes:
        name: name of the profile on the command line.
        summary: description in one line.
        arch: "x86_64" or "aarch64".
        isa: instruction sets that the device must have, as Linux names them.
        python: the oldest Python that runs the loader.
        compute_capability: specifier of the GPU's (`runtime.device.machine.satisfies`), or "".
        jetpack: the JetPack release of a Jetson; "" for other devices.
        engine: engine of the device.
        engine_version: specifier of the engine's versions.
        fallback: engine for devices that lack the first one; "" for none.
        alternatives: further engines that may run the ONNX on the device's CPU.
        workspace_mb: memory that TensorRT may use as workspace, in MiB; 0 for its own bound.
        dla_core: number of the Jetson's deep-learning accelerator for TensorRT; None for none.
        opset: opset of the ONNX.
        chain: the default chain.
        quality: gate to bound, for quality.
        strict: bounds that replace those of `quality` with `--strict`.
        fidelity: gate to bound, for fidelity. `bit_exact` applies to models with integer
            arithmetic throughout, `snr_db` to others, since float sums round differently.
        openvino: gate to bound, for the fidelity of OpenVINO; empty without that engine.
        placement: gate to bound, for the part of the model that onnxruntime runs on the GPU.
        emulate: CPUs to emulate with qemu.
        wheel_platforms: platform tags of the wheels that `--wheels` puts into the bundle.
        wheel_python: Python version of those wheels; "" if the profile has none.
        guide: page of the documentation for the device; "" for none.
        base: name of the profile that it extends; "" for none.
        document: the profile as read, with `extends` resolved.
        path: file of the profile.
    """

    name: str
    summary: str
    arch: str
    isa: tuple[str, ...]
    python: str
    compute_capability: str
    jetpack: str
    engine: str
    engine_version: str
    fallback: str
    alternatives: tuple[str, ...]
    workspace_mb: int
    dla_core: int | None
    opset: int
    chain: str
    quality: Mapping[str, float]
    strict: Mapping[str, float]
    fidelity: Mapping[str, float]
    openvino: Mapping[str, float]
    placement: Mapping[str, float]
    emulate: tuple[str, ...]
    wheel_platforms: tuple[str, ...]
    wheel_python: str
    guide: str
    base: str
    document: Mapping[str, object] = field(repr=False)
    path: Path | None = None

    def read_table(self, name: str) -> Mapping[str, object]:
        """Return a table of the profile, such as the options of a pass; empty if it has none."""
        # The schema allows nothing but a table under the name of a pass.
        return cast("Mapping[str, object]", self.document.get(name, {}))


def folder() -> Path:
    """Return the folder of the shipped profiles, in the checkout or in the installation."""
    checkout = Path(__file__).resolve().parents[2] / "targets"
    if checkout.is_dir():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "edgepack" / "targets"


def shipped() -> dict[str, Path]:
    """Return the file of every shipped profile, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.toml"))}


def find(target: str) -> Path:
    """Return the file of a profile by name or path. Raises SpecError if there is none."""
    profiles = shipped()
    if target in profiles:
        return profiles[target]
    # A path to a .toml is returned even if it does not exist, so that `read` reports the file and
    # not an unknown profile.
    path = Path(target)
    if path.suffix == ".toml" or path.is_file():
        return path
    hint = "edgepack targets list"
    names = [name.strip() for name in target.split(",")]
    if len(names) > 1:
        # A list of targets is written as a repeated option.
        hint = "for several targets: " + " ".join(f"--target {name}" for name in names)
    raise SpecError(
        "target-unknown",
        f"there is no target profile named {target!r}",
        why=f"it is neither a shipped profile nor a .toml file{_suggest(target, profiles)}",
        hint=hint,
    )


def _suggest(name: str, profiles: Collection[str]) -> str:
    """Return a suggestion for an unknown profile: "rpi5" and "pi-5" mean "raspberry-pi-5"."""
    short = _squeeze(name)
    for profile in profiles:
        full = _squeeze(profile)
        if len(short) > 2 and (full.endswith(short) or short.endswith(full)):
            return f"; did you mean {profile!r}?"
    return did_you_mean(name, profiles)


def _squeeze(name: str) -> str:
    """Return the letters and digits of a name, with the usual abbreviation written out."""
    squeezed = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^rpi", "raspberrypi", squeezed)


def list_families() -> dict[str, list[Target]]:
    """Return the shipped profiles by the profile that they extend, which is the first of each.

    jetson-trt extends tensorrt-int8 and is extended itself, so that it heads a family.
    """
    profiles = [load(name) for name in shipped()]
    extended = {profile.base for profile in profiles}
    families: dict[str, list[Target]] = {}
    for profile in profiles:
        if not profile.base or profile.name in extended:
            families[profile.name] = [profile]
    for profile in profiles:
        if profile.name not in families:
            families[profile.base].append(profile)
    return families


def read(path: Path, _depth: int = 0) -> dict[str, object]:
    """Read a profile's document and resolve `extends`: its keys override those of its base."""
    profile = toml_reader.read(path)
    base = profile.pop("extends", None)
    if base is None:
        return profile
    if not isinstance(base, str):
        raise _cannot_extend(path, f"extends is {base!r}")
    if _depth >= MAX_EXTENDS:
        raise _cannot_extend(path, f"more than {MAX_EXTENDS} profiles extend each other")
    # A profile beside this one takes precedence over a shipped profile of the same name.
    beside = path.parent / base
    return _merge(read(beside if beside.is_file() else find(base), _depth + 1), profile)


def _cannot_extend(path: Path, why: str) -> SpecError:
    return SpecError(
        "target-extends",
        f"{path} extends something that cannot be extended",
        why=why,
        hint='extends = "cpu-fbgemm", or the path of a .toml beside it',
    )


# {"engine": {"name": "onnxruntime", "opset": 17}} with {"engine": {"opset": 21}} over it gives
# {"engine": {"name": "onnxruntime", "opset": 21}}. Lists are replaced, not joined.
def _merge(base: dict[str, object], override: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def load(target: str) -> Target:
    """Load and check a profile by name or path. Raises SpecError naming every fault."""
    path = find(target)
    table = read(path)
    toml_reader.check(table, "target", str(path))
    profile = cast("TargetDocument", table)
    device, engine, gates = profile["device"], profile["engine"], profile["gates"]
    wheels = profile.get("wheels", _NO_WHEELS)
    return Target(
        name=profile["name"],
        summary=profile.get("summary", ""),
        arch=device["arch"],
        isa=tuple(device.get("isa", ())),
        python=device.get("python", "3.8"),
        compute_capability=device.get("compute_capability", ""),
        jetpack=device.get("jetpack", ""),
        engine=engine["name"],
        engine_version=engine.get("version", ""),
        fallback=engine.get("fallback", ""),
        alternatives=tuple(engine.get("alternatives", ())),
        workspace_mb=engine.get("workspace_mb", 0),
        dla_core=engine.get("dla_core"),
        opset=engine["opset"],
        chain=profile["chain"]["default"],
        quality=gates["quality"],
        strict=gates.get("strict", {}),
        fidelity=gates["fidelity"],
        openvino=gates.get("openvino", {}),
        placement=gates.get("placement", {}),
        emulate=tuple(profile.get("emulate", {}).get("cpus", ())),
        wheel_platforms=tuple(wheels["platforms"]),
        wheel_python=wheels["python"],
        guide=profile.get("guide", ""),
        base=str(toml_reader.read(path).get("extends", "")),
        document=profile,
        path=path,
    )
