"""`--wheels`: the packages that the device needs, as wheels for its platform.

pip resolves and fetches them, but it evaluates environment markers for this host. So the
requirements of every package are evaluated again for the device, and pip runs until nothing is
missing. The loader's unpacker then opens each wheel, as it will on the device.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict

from edgepack import files
from edgepack.bundle import pip
from edgepack.cache import Cache
from edgepack.errors import SpecError
from edgepack.runtime.bundle.engines import OPENVINO, Variant
from edgepack.runtime.wheels.install import files_of
from edgepack.runtime.wheels.tags import Tags, describe_tags, interpreter, require
from edgepack.runtime.wheels.wheel import Wheel
from edgepack.spec.target import Target

if TYPE_CHECKING:
    from packaging.requirements import Requirement

REQUIREMENTS = "requirements.txt"


class Fetched(TypedDict):
    """Document of the wheels in the cache; `packages` is name to version."""

    wheels: list[str]
    packages: dict[str, str]
    python: str


@dataclass(frozen=True)
class Wheels:
    """Entries of a bundle under wheels/.

    Attributes:
        files: the wheels and a requirements.txt with their versions and hashes, by name.
        packages: name to version.
        python: Python version and platform of the wheels, in words.
        cached: True if they came from the cache.
    """

    files: Mapping[str, Path]
    packages: Mapping[str, str]
    python: str
    cached: bool

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class WheelSets:
    """Files of a bundle's wheels/ by name; both are empty unless requested.

    Attributes:
        own: for the profile's engine.
        further: for that and OpenVINO; empty if the profile has no further engine.
    """

    own: Mapping[str, Path] = field(default_factory=dict)
    further: Mapping[str, Path] = field(default_factory=dict)

    def select(self, variants: Iterable[Variant]) -> Mapping[str, Path]:
        """Return the wheels that some variants need."""
        if self.further and any(variant.engine == OPENVINO for variant in variants):
            return self.further
        return self.own


def fetch(target: Target, requirements: str, cache: Cache) -> Wheels:
    """Return the wheels that a target's device needs, from the cache or from pip.

    Args:
        target: the profile with platforms and Python version.
        requirements: the bundle's requirements.txt.
        cache: stores the wheels.

    Raises HostError with package, platform and Python if pip cannot fetch them, and BundleError if
    the device could not unpack a wheel.
    """
    lines = _applicable(requirements, _environment(target))
    # The same requirements for the same platforms and Python always give the same wheels: versions
    # are pinned when they are first resolved.
    key = cache.key(
        "wheels",
        {
            "requirements": lines,
            "platforms": list(target.wheel_platforms),
            "python": target.wheel_python,
        },
    )
    entry = cache.get("wheels", key)
    cached = entry is not None
    if entry is None:
        with files.temporary_folder() as folder:
            document = _download(target, lines, folder)
            contents = {path.name: _copier(path) for path in sorted(folder.iterdir())}
            entry = cache.put("wheels", key, contents, document)
    cache.keep_in_use(entry)
    names = [*entry.document["wheels"], REQUIREMENTS]
    return Wheels(
        {name: entry.folder / name for name in names},
        entry.document["packages"],
        entry.document["python"],
        cached,
    )


def _copier(path: Path) -> Callable[[BinaryIO], None]:
    def copy(file: BinaryIO) -> None:
        with path.open("rb") as source:
            shutil.copyfileobj(source, file)

    return copy


def _environment(target: Target) -> dict[str, str]:
    """Return the values of environment markers (PEP 508) on the device."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.wheel_python}.0",
        "os_name": "posix",
        "platform_machine": target.arch,
        "platform_python_implementation": "CPython",
        # The kernel of the device is unknown.
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.wheel_python}.0",
        "python_version": target.wheel_python,
        "sys_platform": "linux",
    }


def _applicable(requirements: str, environment: Mapping[str, str]) -> list[str]:
    """Return the requirements that apply to the device, without their markers."""
    # On Python 3.8, "numpy==1.24; python_version < '3.9'" yields "numpy==1.24".
    from packaging.requirements import Requirement

    applicable = []
    for line in requirements.splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        requirement = Requirement(text)
        if not requirement.marker or requirement.marker.evaluate(environment):
            applicable.append(_without_marker(requirement))
    return applicable


def _without_marker(requirement: Requirement) -> str:
    return str(requirement).partition(";")[0].strip()


def _download(target: Target, requirements: Sequence[str], folder: Path) -> Fetched:
    """Download wheels and requirements.txt into a folder, and return the document for the cache."""
    pinned = _resolve(target, list(requirements))
    pin_file = folder / REQUIREMENTS
    # The empty last line ends the one before it.
    pin_file.write_text("\n".join([*pinned, ""]), encoding="utf-8")
    pip.download(target, pin_file, folder)
    paths = sorted(folder.glob("*.whl"))
    tags = _check_wheels(target, paths)
    return {
        "wheels": [path.name for path in paths],
        "packages": {tag.name: tag.version for tag in tags},
        "python": describe_tags(tags),
    }


def _check_wheels(target: Target, paths: Iterable[Path]) -> list[Tags]:
    """Open every wheel as the device will.

    Raises BundleError or DeviceError if the device would reject it.
    """
    wheels, tags = [], []
    for path in paths:
        with path.open("rb") as file, Wheel(path.name, file) as wheel:
            # Reading to the end checks each entry's size and hash.
            for entry in wheel.files:
                for _ in wheel.chunks(entry):
                    pass
            wheels.append(wheel)
            tags.append(wheel.tags)
    # Two wheels must not install different files at one path, and all must fit the interpreter.
    files_of(wheels)
    require(tags, interpreter(target.wheel_python, target.wheel_platforms))
    return tags


def _resolve(target: Target, requirements: list[str]) -> list[str]:
    """Return every package that the device needs, sorted, as "name==version --hash=sha256:..."."""
    # Each round adds the requirements that only the device's markers select, until there are none.
    while True:
        packages = {}
        for package in pip.report(target, requirements):
            packages[_canonical(package["metadata"]["name"])] = package
        needed, missing = _closure(requirements, packages, _environment(target))
        if not missing:
            break
        requirements = [*requirements, *missing]
    pinned = []
    for name in sorted(needed):
        version = packages[name]["metadata"]["version"]
        digest = packages[name]["download_info"]["archive_info"]["hashes"]["sha256"]
        pinned.append(f"{name}=={version} --hash=sha256:{digest}")
    return pinned


def _canonical(name: str) -> str:
    # "Typing_Extensions" and "typing.extensions" are "typing-extensions".
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(
    requirements: Sequence[str], packages: Mapping[str, pip.Package], environment: Mapping[str, str]
) -> tuple[set[str], list[str]]:
    """Return the packages that the device needs, and the requirements missing from pip's report.

    For example pip on Python 3.11 skips "old; python_version < '3.9'", which a device with Python
    3.8 needs: "old" is then missing.

    Args:
        requirements: requirements without markers.
        packages: entries of pip's report by canonical name.
        environment: values of the markers on the device.
    """
    from packaging.requirements import Requirement

    needed: set[str] = set()
    missing: list[str] = []
    visited: set[tuple[str, str]] = set()
    pending = [Requirement(line) for line in requirements]
    while pending:
        requirement = pending.pop()
        name = _canonical(requirement.name)
        if name not in packages or not requirement.specifier.contains(
            packages[name]["metadata"]["version"], prereleases=True
        ):
            missing.append(_without_marker(requirement))
            continue
        needed.add(name)
        # "arm[fast]" needs the requirements of arm and those of its extra "fast".
        for extra in ("", *requirement.extras):
            if (name, extra) in visited:
                continue
            visited.add((name, extra))
            for line in packages[name]["metadata"].get("requires_dist", ()):
                dependency = Requirement(line)
                marker = dependency.marker
                if not marker or marker.evaluate({**environment, "extra": extra}):
                    pending.append(dependency)
    return needed, missing


def check(target: Target) -> None:
    """Raise SpecError unless a profile declares platforms that fit its device."""
    if not target.wheel_platforms:
        raise SpecError(
            "wheels-unknown",
            f"{target.name} does not declare the wheels that its device takes",
            why="the profile has no table [wheels]",
            hint='[wheels] platforms = ["manylinux_2_28_aarch64"], python = "3.11"',
        )
    foreign = [name for name in target.wheel_platforms if not name.endswith(f"_{target.arch}")]
    if foreign:
        raise SpecError(
            "wheels-platform",
            f"{target.name} declares wheels for another processor",
            why=f"the device is {target.arch}; [wheels] platforms has {', '.join(foreign)}",
            hint="correct the platforms in the profile",
        )
