"""The shipped loader, and identification of a bundle's loader by the digest of its files.

edgepack reads bundles with its own loader, so the code in a bundle matters only on devices. There
it decides the output of `verify`: a loader that comes from no release of edgepack may print PASS
and do anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from edgepack import __version__, runtime
from edgepack.runtime.bundle.document import encode
from edgepack.runtime.bundle.index import Index

MAIN = "__main__.py"
FOLDER = "runtime/"
# Entries that Python never imports from. Any other name could shadow a module, because the bundle
# precedes the standard library on Python's path: "json.py" would replace json.
DATA = ("model/", "engine/", "reference/", "report/", "wheels/", "requirements.txt")
# Loaders of earlier releases, digest to version. A release adds its line when it is tagged:
#   python -c 'from edgepack.bundle.loader import own; print(own().digest)'
RELEASES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Loader:
    """Identity of a loader.

    Attributes:
        digest: SHA-256 over the names and hashes of its files.
        release: the version of edgepack that ships it; None if it is unknown to this release.
    """

    digest: str
    release: str | None

    def to_json(self) -> dict[str, Any]:
        """Return digest and release as JSON values."""
        return {"digest": self.digest, "release": self.release}


def read_files() -> dict[str, bytes]:
    """Return the contents of this release's loader, by name in a bundle."""
    folder = Path(runtime.__file__).parent
    # The template is a resource of this package, since it is no module of the loader.
    main = resources.files("edgepack.bundle") / "main_template.py"
    return {
        MAIN: main.read_bytes(),
        **{
            f"{FOLDER}{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in sorted(folder.rglob("*.py"))
        },
    }


@cache
def own() -> Loader:
    """Return the identity of this release's loader."""
    hashes = {name: sha256(data).hexdigest() for name, data in read_files().items()}
    return Loader(_digest(hashes), __version__)


def identify(index: Index) -> Loader:
    """Return the identity of the loader in a bundle that matches its index."""
    # Data may differ in every bundle; everything else, even an unknown file, is part of the loader.
    hashes = {
        name: digest for name, (digest, _) in index.files.items() if not name.startswith(DATA)
    }
    digest = _digest(hashes)
    release = RELEASES.get(digest)
    if digest == own().digest:
        release = own().release
    return Loader(digest, release)


def _digest(hashes: Mapping[str, str]) -> str:
    return sha256(encode(hashes)).hexdigest()
