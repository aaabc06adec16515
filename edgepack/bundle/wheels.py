"""`--wheels`: what the device needs to import, as wheels for its platform.

pip resolves and fetches them, but it reads environment markers as this host's. So what every
package requires is read once more for the device, and asked for until nothing is missing. The
loader's own unpacker then opens each wheel, as it will on the device.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgepack import files
from edgepack.bundle import pip
from edgepack.cache import Cache
from edgepack.errors import SpecError
from edgepack.runtime.commands.setup import files_of
from edgepack.runtime.wheels.tags import Tags, interpreter, require, told
from edgepack.runtime.wheels.wheel import Wheel
from edgepack.spec.target import Target

REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class Wheels:
    """What goes into a bundle under wheels/.

    Attributes:
        files: the wheels and a requirements.txt with their versions and hashes, by name.
        packages: name to version.
        python: what they are for, in words.
        cached: whether they were here already.
    """

    files: Mapping[str, Path]
    packages: Mapping[str, str]
    python: str
    cached: bool

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def fetch(target: Target, requirements: str, cache: Cache) -> Wheels:
    """The wheels that a target's device needs, from the cache or by pip.

    Args:
        target: says for which platforms and which Python.
        requirements: the bundle's requirements.txt.
        cache: keeps them.

    Raises HostError where pip cannot get them, naming package, platform and Python, and
    BundleError where a wheel is none that the device could unpack.
    """
    wanted = _lines(requirements, _environment(target))
    key = cache.key(
        "wheels",
        {
            "requirements": wanted,
            "platforms": list(target.wheel_platforms),
            "python": target.wheel_python,
        },
    )
    entry = cache.get("wheels", key)
    cached = entry is not None
    if entry is None:
        with files.temporary_folder() as folder:
            document = _download(target, wanted, folder)
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
    """The device, as environment markers (PEP 508) ask for it."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.wheel_python}.0",
        "os_name": "posix",
        "platform_machine": target.arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.wheel_python}.0",
        "python_version": target.wheel_python,
        "sys_platform": "linux",
    }


def _lines(requirements: str, environment: Mapping[str, str]) -> list[str]:
    """The requirements that hold on the device, without their markers."""
    from packaging.requirements import Requirement

    written = [line.partition(" #")[0].strip() for line in requirements.splitlines()]
    asked = [Requirement(line) for line in written if line and not line.startswith("#")]
    return [_bare(one) for one in asked if not one.marker or one.marker.evaluate(environment)]


def _bare(requirement: Any) -> str:
    return str(requirement).partition(";")[0].strip()


def _download(target: Target, wanted: Sequence[str], folder: Path) -> dict[str, Any]:
    """Fill a folder with the wheels and their requirements.txt; returns what is in it."""
    pinned = _resolve(target, list(wanted))
    listed = folder / REQUIREMENTS
    listed.write_text("".join(f"{line}\n" for line in pinned), encoding="utf-8")
    pip.download(target, listed, folder)
    paths = sorted(folder.glob("*.whl"))
    tags = _prove(target, paths)
    return {
        "wheels": [path.name for path in paths],
        "packages": {one.name: one.version for one in tags},
        "python": told(tags),
    }


def _prove(target: Target, paths: Iterable[Path]) -> list[Tags]:
    """Open every wheel as the device will.

    Raises BundleError or DeviceError where it would be refused there.
    """
    wheels = []
    for path in paths:
        with path.open("rb") as file, Wheel(path.name, file) as wheel:
            for place in wheel.files:
                for _ in wheel.chunks(place):
                    pass
            wheels.append(wheel)
    files_of(wheels)
    tags = [wheel.tags for wheel in wheels]
    require(tags, interpreter(target.wheel_python, target.wheel_platforms))
    return tags


def _resolve(target: Target, asked: list[str]) -> list[str]:
    """Every package that the device needs, as "name==version --hash=sha256:...", in order."""
    while True:
        found = {_canonical(item["metadata"]["name"]): item for item in pip.report(target, asked)}
        needed, missing = _closure(asked, found, _environment(target))
        if not missing:
            break
        asked = [*asked, *missing]
    return [
        "{}=={} --hash=sha256:{}".format(
            name,
            found[name]["metadata"]["version"],
            found[name]["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for name in sorted(needed)
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(
    asked: Sequence[str], found: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[set[str], list[str]]:
    """What the device needs of what pip found, and the requirements that pip did not see.

    Args:
        asked: requirements without markers.
        found: pip's report by canonical name.
        environment: of the device.
    """
    from packaging.requirements import Requirement

    needed: set[str] = set()
    missing: list[str] = []
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in asked]
    while waiting:
        requirement = waiting.pop()
        name = _canonical(requirement.name)
        if name not in found or not requirement.specifier.contains(
            found[name]["metadata"]["version"], prereleases=True
        ):
            missing.append(_bare(requirement))
            continue
        needed.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            listed = map(Requirement, found[name]["metadata"].get("requires_dist", ()))
            waiting += [
                one
                for one in listed
                if not one.marker or one.marker.evaluate({**environment, "extra": extra})
            ]
    return needed, missing


def check(target: Target) -> None:
    """Raise SpecError where a profile does not say which wheels its device takes, or errs."""
    if not target.wheel_platforms:
        raise SpecError(
            "wheels-unknown",
            f"{target.name} does not say which wheels its device takes",
            why="the profile has no table [wheels]",
            hint='[wheels] platforms = ["manylinux_2_28_aarch64"], python = "3.11"',
        )
    odd = [name for name in target.wheel_platforms if not name.endswith(f"_{target.arch}")]
    if odd:
        raise SpecError(
            "wheels-platform",
            f"{target.name} names wheels of another processor than its own",
            why=f"the device is {target.arch}; [wheels] platforms has {', '.join(odd)}",
            hint="correct the profile",
        )
