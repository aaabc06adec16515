"""Target profiles: which device, which engine, which chain, which gates."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.errors import SpecError
from edgepack.spec import document

MAX_EXTENDS = 8


@dataclass(frozen=True)
class Target:
    """A device profile, as `targets/*.toml` states it.

    Attributes:
        name: what the user calls it.
        summary: one line.
        arch: "x86_64" or "aarch64".
        isa: instruction sets that the device must have, as Linux names them.
        python: the oldest Python of the loader.
        compute_capability: of the GPU, a specifier (`runtime.device.machine.satisfies`) or "".
        jetpack: the JetPack release of a Jetson; "" elsewhere.
        engine: what executes on the device.
        engine_version: which versions of it, as a specifier.
        fallback: what executes where the engine is not to be had; "" where nothing may.
        workspace_mb: memory that TensorRT may use while it works, in MiB; 0 for its own bound.
        dla_core: the deep-learning accelerator of a Jetson that TensorRT shall use; None for none.
        opset: of the ONNX.
        chain: the default chain.
        passes: options by pass.
        quality: gate to bound, for quality.
        strict: the bounds that `--strict` puts in their place.
        fidelity: gate to bound, for fidelity. `bit_exact` holds for models whose arithmetic is
            integer throughout, `snr_db` for the others, whose float sums round differently.
        emulate: CPUs that qemu can stand in for.
        wheel_platforms: platform tags of the wheels that `--wheels` puts into the bundle.
        wheel_python: the Python of the device that they are for; "" where the profile has none.
        document: the profile as it was read, `extends` resolved.
        path: its file.
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
    workspace_mb: int
    dla_core: int | None
    opset: int
    chain: str
    passes: Mapping[str, Mapping[str, Any]]
    quality: Mapping[str, float]
    strict: Mapping[str, float]
    fidelity: Mapping[str, Any]
    emulate: tuple[str, ...]
    wheel_platforms: tuple[str, ...]
    wheel_python: str
    document: Mapping[str, Any] = field(repr=False)
    path: Path | None = None


def folder() -> Path:
    """Where the shipped profiles are: beside the package in a checkout, else in the install."""
    checkout = Path(__file__).resolve().parents[2] / "targets"
    if checkout.is_dir():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "edgepack" / "targets"


def shipped() -> dict[str, Path]:
    """Name to file of every shipped profile."""
    return {path.stem: path for path in sorted(folder().glob("*.toml"))}


def find(target: str) -> Path:
    """The file of a profile, by name or by path. Raises SpecError where there is none."""
    known = shipped()
    if target in known:
        return known[target]
    path = Path(target)
    if path.suffix == ".toml" or path.is_file():
        return path
    raise SpecError(
        "target-unknown",
        f"there is no target profile named {target!r}",
        why=f"it is neither a shipped profile nor a .toml file"
        f"{document.did_you_mean(target, known)}",
        hint="edgepack targets list",
    )


def read(path: Path, _depth: int = 0) -> dict[str, Any]:
    """A profile's document with `extends` resolved: its keys laid over those of its base."""
    found = document.read(path)
    base = found.pop("extends", None)
    if base is None:
        return found
    if not isinstance(base, str) or _depth >= MAX_EXTENDS:
        raise SpecError(
            "target-extends",
            f"{path} extends something that cannot be extended",
            why="extends names a profile, and not itself"
            if isinstance(base, str)
            else f"extends is {base!r}",
            hint='extends = "cpu-fbgemm", or the path of a .toml beside it',
        )
    beside = path.parent / base
    return _laid_over(read(beside if beside.is_file() else find(base), _depth + 1), found)


def _laid_over(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = (
            _laid_over(below, value)
            if isinstance(below, dict) and isinstance(value, Mapping)
            else value
        )
    return merged


def load(target: str) -> Target:
    """A profile by name or path, checked. Raises SpecError naming every fault."""
    path = find(target)
    found = read(path)
    document.check(found, "target", str(path))
    device, engine, gates = found["device"], found["engine"], found["gates"]
    wheels = found.get("wheels", {})
    return Target(
        name=found["name"],
        summary=found.get("summary", ""),
        arch=device["arch"],
        isa=tuple(device.get("isa", ())),
        python=device.get("python", "3.8"),
        compute_capability=device.get("compute_capability", ""),
        jetpack=device.get("jetpack", ""),
        engine=engine["name"],
        engine_version=engine.get("version", ""),
        fallback=engine.get("fallback", ""),
        workspace_mb=engine.get("workspace_mb", 0),
        dla_core=engine.get("dla_core"),
        opset=engine["opset"],
        chain=found["chain"]["default"],
        passes=document.passes(found),
        quality=gates["quality"],
        strict=gates.get("strict", {}),
        fidelity=gates["fidelity"],
        emulate=tuple(found.get("emulate", {}).get("cpus", ())),
        wheel_platforms=tuple(wheels.get("platforms", ())),
        wheel_python=wheels.get("python", ""),
        document=found,
        path=path,
    )
