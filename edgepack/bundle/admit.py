"""What a bundle must satisfy before anything in it is read.

With a hash or a list of accepted keys to hold it against, the bundle is copied into a folder of
this process's own while it is hashed, and the copy is what is checked, read, run and sent: whoever
can write to the original can no longer change what was checked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgepack import files, signing
from edgepack.bundle.loader import Loader, identify
from edgepack.errors import BundleError
from edgepack.runtime.bundle import checksum, seal
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import Index, check_all, read_index


@dataclass(frozen=True)
class Demands:
    """What a bundle is held against from outside.

    Attributes:
        expect: SHA-256 of the file, in hexadecimal; "" for any.
        signers: the list of accepted keys; None where no signature is asked for.
    """

    expect: str = ""
    signers: Path | None = None


@dataclass(frozen=True)
class Admitted:
    """A bundle that satisfies the demands and is intact.

    Attributes:
        path: the file to use from now on, which has the bundle's own name.
        index: of it.
        sha256: of the whole file, in hexadecimal.
        size: in bytes.
        signature: whose it is; None where none was asked for.
        signed: the text of the signature beside it; empty where there is none.
        loader: the loader inside, which runs on devices.
    """

    path: Path
    index: Index
    sha256: str
    size: int
    signature: signing.Signature | None
    signed: bytes
    loader: Loader

    def to_json(self) -> dict[str, Any]:
        """Return what vouches for the bundle, as JSON values."""
        return {
            "sha256": self.sha256,
            "signature": self.signature.to_json() if self.signature else None,
            "loader": self.loader.to_json(),
        }


@contextmanager
def admit(
    bundle: Path, demands: Demands | None = None, *, private: bool = False
) -> Iterator[Admitted]:
    """Hold a bundle against demands, then check that it is intact; none of its code runs.

    Args:
        bundle: its path.
        demands: what it is held against; None for nothing.
        private: read a copy that nobody else can change, demands or not.

    Raises BundleError where it is not what was demanded, where it does not match the hash beside
    it, or where it is not intact; SpecError and HostError where it cannot be checked.
    """
    demands = demands or Demands()
    listed = checksum.read_checksum(str(bundle))
    signed = signing.read(beside(bundle, signing.SUFFIX))
    if not (private or demands.expect or demands.signers):
        yield _inspect(bundle, listed, signed, None)
        return
    with files.temporary_folder() as folder:
        copy = folder / bundle.name
        digest = _copy(bundle, copy)
        if demands.expect and digest != demands.expect:
            raise checksum.mismatch("--expect", digest, demands.expect)
        signature = None
        if demands.signers:
            signature = signing.verify(copy, signed, demands.signers)
        yield _inspect(copy, listed, signed, signature)


def require_accepted(bundle: Admitted) -> None:
    """Raise BundleError unless the build that made a bundle accepted it."""
    if bundle.index.quality.get("passed") is not True:
        raise BundleError(
            "bundle-rejected",
            "this bundle is not signed, because its build rejected it",
            why="a gate was missed, or the bundle is a draft",
            hint="edgepack inspect BUNDLE shows which; build it again",
        )


def beside(bundle: Path, suffix: str) -> Path:
    """Return the path of a file that accompanies a bundle."""
    return bundle.with_name(bundle.name + suffix)


def copy_engine(bundle: Path, copy: Path) -> None:
    """Copy the engine that is sealed beside a bundle, if any, so that the copy runs in it.

    Raises DeviceError where somebody else could have put the engine there: it is native code.
    """
    with suppress(FileNotFoundError):
        source = open(beside(bundle, seal.SUFFIX), "rb", opener=seal.open_trusted)  # noqa: SIM115
        with source, beside(copy, seal.SUFFIX).open("wb") as target:
            shutil.copyfileobj(source, target, files.CHUNK)
            os.fchmod(target.fileno(), 0o600)


def _inspect(
    path: Path, listed: str | None, signed: bytes, signature: signing.Signature | None
) -> Admitted:
    """Check that a bundle is intact, and that it has the hash that stands beside it."""
    with Archive(str(path)) as archive:
        digest, size = archive.sha256(), archive.size
        if listed is not None and digest != listed:
            raise checksum.mismatch(path.name + checksum.SUFFIX, digest, listed)
        index = read_index(archive)
        check_all(archive, index)
    return Admitted(path, index, digest, size, signature, signed, identify(index))


def _copy(bundle: Path, copy: Path) -> str:
    """Copy a bundle; returns the SHA-256 of the copy. Raises BundleError, or OSError for a disk."""
    try:
        source = files.open_plain(bundle)
    except OSError as error:
        raise BundleError(
            "bundle-unreadable",
            f"the bundle cannot be read: {bundle}",
            why=error.strerror or str(error),
            hint="check the path and the permissions",
        ) from error
    digest = sha256()
    with source, copy.open("wb") as target:
        while chunk := source.read(files.CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
