"""The shipped loader, and identification of a bundle's loader by the digest of its files.

A bundle carries the parts of the loader that its variants use, without
comments, docstrings and what only type checkers read.

edgepack reads bundles with its own loader, so the code in a bundle matters only on devices. There
it decides the output of `verify`: a loader that comes from no release of edgepack may print PASS
and do anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from hashlib import sha256
from importlib import resources
from itertools import product
from pathlib import Path

from edgepack import __version__, runtime
from edgepack.bundle.source import find_imports, strip_documentation, strip_indentation
from edgepack.runtime.bundle.engines import OPENVINO, TENSORRT, Variant
from edgepack.runtime.bundle.index import Index
from edgepack.runtime.strict_json import encode

MAIN = "__main__.py"
FOLDER = "runtime/"
# Entries that Python never imports from. Any other name could shadow a module, because the bundle
# precedes the standard library on Python's path: "json.py" would replace json.
DATA = (
    *("model/", "engine/", "reference/", "report/", "wheels/", "requirements.txt"),
    # Class names, and what a preprocessing reads.
    "preprocess/",
)
# Loaders of earlier releases, digest to version. A release adds its lines when it is tagged:
#   python -c 'from edgepack.bundle.loader import own_digests; print(*own_digests(), sep="\n")'
RELEASES: Mapping[str, str] = {}


class Need(Enum):
    """Ability of the loader that only some bundles need."""

    GPU = "a variant runs on a GPU"
    TENSORRT = "a variant runs in TensorRT"
    FINISH = "an engine is built on the device"
    OPENVINO = "a variant runs in OpenVINO"
    TUNE = "engines and settings compete on the device"
    WHEELS = "wheels are installed on the device"
    RAW = "inputs are made from raw data"
    PICTURE = "the raw data are pictures"
    TEXT = "the raw data are texts"
    AUDIO = "the raw data are recordings"
    CODE = "the user's own code prepares the raw data, or decodes the outputs"


Needs = frozenset[Need]

# Where the imports of the loader start. Both entries are named in `main_template.py` and in
# `runtime/__init__.py`, which `from runtime import load` reads.
ROOTS = ("__init__.py", "cli.py")
# Pages for browsers, which no import leads to.
PAGES = ("serve/page.html",)
# Modules for one need, imported only inside functions. Modules that only they import follow them:
# `tensorrt_session.py`, for example, brings `cuda.py` and all that opens a GPU's memory.
OPTIONAL: Mapping[str, Need] = {
    "device/gpu.py": Need.GPU,
    "device/gpu_checks.py": Need.GPU,
    "session/rounding.py": Need.GPU,
    "session/placement.py": Need.GPU,
    "session/tensorrt_session.py": Need.TENSORRT,
    "session/openvino_session.py": Need.OPENVINO,
    "bundle/seal.py": Need.FINISH,
    "commands/finish.py": Need.FINISH,
    "device/tuned.py": Need.TUNE,
    "commands/tune.py": Need.TUNE,
    "wheels/install.py": Need.WHEELS,
    "bundle/raw.py": Need.RAW,
    "commands/predict.py": Need.RAW,
    "preprocess/feed.py": Need.RAW,
    "preprocess/kinds.py": Need.RAW,
    "preprocess/reference.py": Need.RAW,
    "preprocess/picture.py": Need.PICTURE,
    "preprocess/text.py": Need.TEXT,
    "preprocess/audio.py": Need.AUDIO,
    "preprocess/code.py": Need.CODE,
}
# Kind of preprocessing -> its need, besides that of raw data.
KINDS: Mapping[str, Need] = {
    "picture": Need.PICTURE,
    "text": Need.TEXT,
    "audio": Need.AUDIO,
    "code": Need.CODE,
}
# Needs of the engines that occur together, besides wheels.
_ENGINE_NEEDS: tuple[Needs, ...] = (
    frozenset({Need.TUNE}),
    frozenset({Need.TUNE, Need.OPENVINO}),
    frozenset({Need.GPU}),
    frozenset({Need.GPU, Need.TENSORRT}),
    frozenset({Need.GPU, Need.TENSORRT, Need.FINISH}),
)


@dataclass(frozen=True)
class Loader:
    """Identity of a loader.

    Attributes:
        digest: SHA-256 over the names and hashes of its files.
        release: the version of edgepack that ships it; None if it is unknown to this release.
    """

    digest: str
    release: str | None

    def to_json(self) -> dict[str, str | None]:
        """Return digest and release as JSON values."""
        return {"digest": self.digest, "release": self.release}


def find_needs(
    variants: Iterable[Variant], files: Iterable[str], kind: str = "", decodes: bool = False
) -> Needs:
    """Return the needs of a bundle.

    Args:
        variants: of the bundle.
        files: names of its entries.
        kind: of its preprocessing; "" for none.
        decodes: True if a function of the user's decodes the outputs.
    """
    needs = set()
    if decodes:
        needs.add(Need.CODE)
    if kind:
        needs.add(Need.RAW)
        # A bundle of a later release may have a kind that is unknown here.
        if kind in KINDS:
            needs.add(KINDS[kind])
    for variant in variants:
        if variant.on_gpu:
            needs.add(Need.GPU)
        if variant.engine == TENSORRT:
            needs.add(Need.TENSORRT)
        if variant.engine == OPENVINO:
            needs.add(Need.OPENVINO)
        if variant.unfinished:
            needs.add(Need.FINISH)
    # Only engines on the CPU have settings.
    if Need.GPU not in needs:
        needs.add(Need.TUNE)
    if any(name.startswith("wheels/") for name in files):
        needs.add(Need.WHEELS)
    return frozenset(needs)


@cache
def select_modules(needs: Needs) -> tuple[str, ...]:
    """Return the loader's modules for some needs, as sorted paths below its folder.

    Imports are followed from ROOTS, but not into a module that serves another need.
    """
    folder = Path(runtime.__file__).parent
    selected: set[str] = set()
    pending = list(ROOTS)
    while pending:
        name = pending.pop()
        if name in selected or OPTIONAL.get(name) not in (None, *needs):
            continue
        selected.add(name)
        pending += find_imports(folder, name)
    return tuple(sorted(selected))


@cache
def read_files(needs: Needs) -> Mapping[str, bytes]:
    """Return the contents of this release's loader for some needs, by name in a bundle."""
    folder = Path(runtime.__file__).parent
    # The template is a resource of this package, since it is not a module of the loader.
    contents = {MAIN: (resources.files("edgepack.bundle") / "main_template.py").read_bytes()}
    for name in select_modules(needs):
        contents[FOLDER + name] = _strip(folder / name)
    for name in PAGES:
        text = (folder / name).read_text(encoding="utf-8")
        contents[FOLDER + name] = strip_indentation(text).encode()
    return contents


@cache
def _strip(path: Path) -> bytes:
    """Return a module as bundles carry it; cached, since many combinations of needs share it."""
    return strip_documentation(path.read_text(encoding="utf-8")).encode()


@cache
def own(needs: Needs) -> Loader:
    """Return the identity of this release's loader for some needs."""
    hashes = {}
    for name, data in read_files(needs).items():
        hashes[name] = sha256(data).hexdigest()
    return Loader(_digest(hashes), __version__)


def own_digests() -> list[str]:
    """Return the digests of this release's loader for every combination of needs."""
    return [own(needs).digest for needs in list_combinations()]


def list_combinations() -> list[Needs]:
    """Return every combination of needs that a bundle of this release can have."""
    raw_needs: list[Needs] = [frozenset()]
    raw_needs += [frozenset({Need.RAW, kind}) for kind in KINDS.values()]
    # Any of them may have a function that decodes the outputs.
    raw_needs = list(dict.fromkeys([*raw_needs, *(raw | {Need.CODE} for raw in raw_needs)]))
    combinations = []
    for engines, wheels, raw in product(_ENGINE_NEEDS, (False, True), raw_needs):
        needs = raw | engines
        combinations.append(needs | {Need.WHEELS} if wheels else needs)
    return combinations


def identify(index: Index) -> Loader:
    """Return the identity of the loader in a bundle that matches its index."""
    # Data may differ in every bundle; everything else, even an unknown file, is part of the loader.
    hashes = {}
    for name, (file_digest, _) in index.files.items():
        # A module is code wherever it is.
        if name.endswith(".py") or not name.startswith(DATA):
            hashes[name] = file_digest
    digest = _digest(hashes)
    release = RELEASES.get(digest)
    kind = ""
    if index.preprocessing is not None:
        kind = str(index.preprocessing.value.get("kind"))
    decodes = index.postprocessing is not None
    expected = own(find_needs(index.variants, index.files, kind, decodes))
    if digest == expected.digest:
        release = expected.release
    return Loader(digest, release)


def _digest(hashes: Mapping[str, str]) -> str:
    return sha256(encode(hashes)).hexdigest()
