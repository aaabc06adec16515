"""Checks that a bundle must pass before anything in it is read.

If a hash or a list of accepted keys is required, the bundle is copied into a private folder while
it is hashed, and only the copy is checked, read, run and sent. Nobody who can write to the original
can then change the bytes after the check.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edgepack import files, signing
from edgepack.bundle.loader import Loader, identify
from edgepack.errors import BundleError, DeviceError
from edgepack.runtime.bundle import checksum, seal
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.bundle.index import Index, check_all, read_index
from edgepack.runtime.device import tuned


@dataclass(frozen=True)
class Demands:
    """Requirements on a bundle from outside.

    Attributes:
        expect: SHA-256 of the file, in hexadecimal; "" accepts any.
        signers: the list of accepted keys; None if no signature is required.
    """

    expect: str = ""
    signers: Path | None = None


@dataclass(frozen=True)
class Admitted:
    """Intact bundle that meets the demands.

    Attributes:
        path: the file to use from now on, which has the bundle's name.
        index: the bundle's index.
        sha256: of the whole file, in hexadecimal.
        size: in bytes.
        signature: the verified signature; None if none was required.
        signed: the text of the signature beside the bundle; empty without one.
        loader: the loader inside, which runs on devices.
    """

    path: Path
    index: Index
    sha256: str
    size: int
    signature: signing.Signature | None
    signed: bytes
    loader: Loader

    def to_json(self) -> dict[str, object]:
        """Return the evidence for the bundle's origin, as JSON values."""
        signature = None
        if self.signature is not None:
            signature = self.signature.to_json()
        return {
            "sha256": self.sha256,
            "signature": signature,
            "loader": self.loader.to_json(),
        }


@contextmanager
def admit(
    bundle: Path, demands: Demands | None = None, *, private: bool = False
) -> Iterator[Admitted]:
    """Check a bundle against demands and for integrity, without running its code.

    Args:
        bundle: its path.
        demands: the requirements; None for none.
        private: read a copy that nobody else can change, even without demands.

    Raises BundleError if the bundle does not meet the demands, does not match the hash beside it,
    or is not intact; SpecError and HostError if it cannot be checked.
    """
    demands = demands or Demands()
    # The hash and the signature lie beside the original, not beside the copy.
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
        # The hash is compared first, since it is cheap and needs no OpenSSH.
        signature = None
        if demands.signers:
            signature = signing.verify(copy, signed, demands.signers)
        yield _inspect(copy, listed, signed, signature)


def require_accepted(bundle: Admitted) -> None:
    """Raise BundleError unless the build of a bundle accepted it."""
    if bundle.index.quality.get("passed") is not True:
        raise BundleError(
            "bundle-rejected",
            "the bundle is not signed, because its build rejected it",
            why="a gate was missed, or the bundle is a draft",
            hint="edgepack inspect BUNDLE shows the missed gates; build it again",
        )


def beside(bundle: Path, suffix: str) -> Path:
    """Return the path of a file that accompanies a bundle."""
    return bundle.with_name(bundle.name + suffix)


def copy_sealed(bundle: Path, copy: Path) -> None:
    """Copy what is sealed beside a bundle, engine and choice, for use with a copy of the bundle.

    Raises DeviceError if another user could have written the engine, which is native code; a
    choice that cannot be trusted is left out, as the loader ignores it.
    """
    _copy_file(beside(bundle, seal.SUFFIX), beside(copy, seal.SUFFIX), seal.open_trusted)
    with suppress(DeviceError):
        _copy_file(beside(bundle, tuned.SUFFIX), beside(copy, tuned.SUFFIX), tuned.open_trusted)


def _copy_file(source: Path, target: Path, opener: Callable[[str, int], int]) -> None:
    with suppress(FileNotFoundError):
        original = open(source, "rb", opener=opener)  # noqa: SIM115
        with original, target.open("wb") as file:
            shutil.copyfileobj(original, file, files.CHUNK)
            # The loader rejects a file that others may write.
            os.fchmod(file.fileno(), 0o600)


def _inspect(
    path: Path, listed: str | None, signed: bytes, signature: signing.Signature | None
) -> Admitted:
    """Check that a bundle is intact and has the hash in the file beside it."""
    with Archive(str(path)) as archive:
        digest, size = archive.sha256(), archive.size
        if listed is not None and digest != listed:
            raise checksum.mismatch(path.name + checksum.SUFFIX, digest, listed)
        index = read_index(archive)
        check_all(archive, index)
    return Admitted(path, index, digest, size, signature, signed, identify(index))


def _copy(bundle: Path, copy: Path) -> str:
    """Copy a bundle and return the SHA-256 of the copy.

    Raises BundleError if the bundle cannot be read, OSError if the copy cannot be written.
    """
    try:
        source = files.open_plain(bundle)
    except OSError as error:
        raise BundleError(
            "bundle-unreadable",
            f"the bundle cannot be read: {bundle}",
            why=error.strerror or str(error),
            hint="check the path and the permissions",
        ) from error
    # Hash the bytes that are written, not the file again: it may change in between.
    digest = sha256()
    with source, copy.open("wb") as target:
        while chunk := source.read(files.CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
