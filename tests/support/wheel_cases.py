"""Wheels made by hand, and bundles that carry them."""

from __future__ import annotations

import base64
import hashlib
import stat
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from edgepack import bundle
from support.linear import linear_contents

WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def record_of(entries: Mapping[str, bytes], info: str) -> str:
    """RECORD of a wheel with these files, itself at the end."""
    lines = []
    for path, data in entries.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        quoted = f'"{path}"' if "," in path else path
        lines.append(f"{quoted},sha256={digest},{len(data)}\n")
    return "".join(lines) + f"{info}/RECORD,,\n"


def entries_of(
    name: str, version: str, files: Mapping[str, bytes], requires: Iterable[str] = ()
) -> dict[str, bytes]:
    """All files of a wheel, RECORD last."""
    info = f"{name}-{version}.dist-info"
    metadata = "".join(
        ["Metadata-Version: 2.1\n", f"Name: {name}\n", f"Version: {version}\n"]
        + [f"Requires-Dist: {one}\n" for one in requires]
    )
    entries = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": WHEEL.encode(),
    }
    return {**entries, f"{info}/RECORD": record_of(entries, info).encode()}


def write_zip(path: Path, entries: Mapping[str, bytes], **modes: int) -> Path:
    """A zip with these entries; `modes` are of entries by name, the others are plain files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return path


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    files: Mapping[str, bytes] | None = None,
    requires: Iterable[str] = (),
) -> Path:
    """A wheel of one module, or of these files."""
    contents = files if files is not None else {f"{name}.py": f"version = {version!r}\n".encode()}
    path = folder / f"{name}-{version}-{tag}.whl"
    return write_zip(path, entries_of(name, version, contents, requires))


def bundle_with(path: Path, *wheels: Path) -> Path:
    """A bundle that `setup` takes; it has no answers of its own, and needs none for that."""
    bundle.write(path, replace(linear_contents(), wheels={wheel.name: wheel for wheel in wheels}))
    return path
