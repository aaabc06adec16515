"""Write constraints.txt: the version of every package in the development environment.

    python .ci/constraints.py            # from the environment of this Python
    python .ci/constraints.py --check    # list the packages that the file lacks, write nothing

Run it in an environment of edgepack[dev]. A package that this environment lacks because it is for
another platform keeps its line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"
EXTRAS = ("dev", "tensorrt-rtx")
FLOOR = "3.10"
"""The oldest Python that edgepack installs on: pyproject.toml's requires-python."""
HEADER = """\
# Exact versions of the environment that edgepack is developed and tested in; `make` uses them, and
# `make constraints` writes them. Where a release has left Python 3.10 behind, pip chooses an older
# one there. Users install without: pyproject.toml states the ranges that edgepack works with, and
# torchvision brings a torch of its own (`pip install torchvision timm 'edgepack[all]'`).
"""


def pin(package: metadata.Distribution) -> str:
    """Return the line of a package, such as `numpy==2.4.6; python_version >= "3.11"`."""
    # torch's own index marks its builds, as in 2.13.0+cpu; the pin holds for each of them.
    line = f"{package.metadata['Name']}=={package.version.partition('+')[0]}"
    supported = SpecifierSet(package.metadata["Requires-Python"] or "")
    # Of 3.10 the last patch release counts, since some packages ask for 3.10.2 or the like.
    if f"{FLOOR}.99" in supported:
        return line
    return f'{line}; python_version > "{FLOOR}"'


def required(extras: Iterable[str]) -> dict[str, str]:
    """Return the line of every package that edgepack needs with these extras.

    Follows the requirements from package to package, as pip does:
    edgepack[dev] -> pytest>=8.2 -> pluggy -> ...
    """
    lines: dict[str, str] = {}
    visited: set[tuple[str, str]] = set()
    waiting = [("edgepack", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in visited:
            continue
        visited.add((name, extra))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        lines[canonicalize_name(name)] = pin(package)
        for line in package.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, each) for each in ("", *requirement.extras)]
    lines.pop("edgepack")
    return lines


def pinned() -> dict[str, str]:
    """Return the lines of constraints.txt by package."""
    lines = {}
    for line in FILE.read_text().splitlines():
        if line and not line.startswith("#"):
            lines[canonicalize_name(Requirement(line).name)] = line
    return lines


def main() -> None:
    """Write the file, or check it."""
    before, now = pinned(), required(EXTRAS)
    if sys.argv[1:] == ["--check"]:
        missing = sorted(now.keys() - before.keys())
        if missing:
            sys.exit(f"constraints.txt lacks {', '.join(missing)}: make constraints")
        return
    for name in sorted(before.keys() - now.keys()):
        print(f"not installed here, kept: {before[name]}")
    merged = before | now
    FILE.write_text(HEADER + "".join(f"{merged[name]}\n" for name in sorted(merged)))


if __name__ == "__main__":
    main()
