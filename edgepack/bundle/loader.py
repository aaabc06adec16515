"""The loader that ships, and the recognition of one in a bundle by the digest of its files.

edgepack reads bundles with its own loader, so the code in a bundle matters on devices alone. There
it decides what `verify` prints: a bundle whose loader comes from no release of edgepack may print
PASS and do as it likes.
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
# What Python does not look into when the loader imports something. Any other name could stand in
# for a module: the bundle comes first on its path, before the standard library.
DATA = ("model/", "engine/", "reference/", "report/", "wheels/", "requirements.txt")
# The loaders of earlier releases, digest to version. A release adds its line when it is tagged:
#   python -c 'from edgepack.bundle.loader import own; print(own().digest)'
RELEASES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Loader:
    """A loader, known by its files.

    Attributes:
        digest: SHA-256 over the names and hashes of its files.
        release: the version of edgepack that ships it; None where this release knows of none.
    """

    digest: str
    release: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"digest": self.digest, "release": self.release}


def read_files() -> dict[str, bytes]:
    """Read the files of this release's loader, by their names in a bundle."""
    folder = Path(runtime.__file__).parent
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
    """Return the loader of this release."""
    hashes = {name: sha256(data).hexdigest() for name, data in read_files().items()}
    return Loader(_digest(hashes), __version__)


def identify(index: Index) -> Loader:
    """Return the loader in a bundle whose files match its index."""
    hashes = {
        name: digest for name, (digest, _) in index.files.items() if not name.startswith(DATA)
    }
    digest = _digest(hashes)
    release = own().release if digest == own().digest else RELEASES.get(digest)
    return Loader(digest, release)


def _digest(hashes: Mapping[str, str]) -> str:
    return sha256(encode(hashes)).hexdigest()
