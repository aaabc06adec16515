"""Record the source files and package versions that build a network."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType

from edgepack.source.digest import Digest

# Large packages are identified by their version, everything else by its files: torch alone has
# thousands of them.
BY_VERSION = frozenset(
    ["torch", "torchvision", "torchaudio", "numpy", "scipy", "transformers", "tokenizers",
     "safetensors", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "sympy", "networkx", "triton",
     "pandas", "sklearn", "PIL", "cv2", "matplotlib", "timm", "pytorch_lightning", "lightning",
     "huggingface_hub", "fsspec", "yaml", "jinja2", "regex", "tqdm", "requests", "accelerate"]
)  # fmt: skip

_STDLIB = (
    os.path.realpath(sysconfig.get_path("stdlib")) + os.sep,
    os.path.realpath(sysconfig.get_path("platstdlib")) + os.sep,
)

# In a checkout edgepack is not an installed package, and torch reads its sources as a caller's.
_OWN = str(Path(__file__).resolve().parents[1]) + os.sep

# Files of the system describe the machine, not the network.
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/lib/", "/usr/lib/", "/usr/share/")
_WRITES = frozenset("wax+")


@dataclass
class Opened:
    """Files that were opened for reading while `watch_files` was active.

    Attributes:
        paths: their absolute paths.
        callers: sources of the calling frames; torch reads them to describe its stack.
    """

    paths: set[Path] = field(default_factory=set)
    callers: frozenset[Path] = frozenset()


_watching: list[Opened] = []
_hooked = False


@contextmanager
def watch_files() -> Iterator[Opened]:
    """Record the files opened inside the context: a factory may read a configuration.

    An audit hook cannot be removed, so it is set once and does nothing outside this context.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_on_audit)
        _hooked = True
    callers = set()
    for frame, _ in traceback.walk_stack(sys._getframe()):
        callers.add(Path(frame.f_code.co_filename).absolute())
    opened = Opened(callers=frozenset(callers))
    _watching.append(opened)
    try:
        yield opened
    finally:
        _watching.remove(opened)


def _on_audit(event: str, arguments: tuple[object, ...]) -> None:
    # The arguments of "open" are the path, the mode and the flags; a path can also be the number
    # of an open file, and `os.open` has no mode.
    if event != "open" or not _watching or not isinstance(arguments[0], (str, bytes)):
        return
    mode = arguments[1]
    if isinstance(mode, str) and not _WRITES.isdisjoint(mode):
        return
    path = Path(os.fsdecode(arguments[0])).absolute()
    if path not in _watching[-1].callers:
        _watching[-1].paths.add(path)


def add_code(
    digest: Digest, roots: Iterable[ModuleType], opened: Iterable[Path], module: ModuleType
) -> tuple[str, ...]:
    """Add to the digest the code behind `module` and the files read to build it.

    Args:
        digest: digest to extend.
        roots: Python modules to start from: the factory's, and those that it imported.
        opened: files read during the build.
        module: the torch module; the classes of all its parts are followed.

    Returns:
        Names of the added files, for the ledger.
    """
    # A subclass inherits behaviour, so the modules of all base classes count as well.
    start = {root.__name__ for root in roots}
    for part in module.modules():
        for base in type(part).__mro__:
            start.add(base.__module__)
    files: dict[str, Path] = {}
    versions: dict[str, str] = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in _closure(start):
        top, file = name.partition(".")[0], _file(name)
        if top in BY_VERSION or (file is not None and is_installed(file)):
            versions[top] = _version(top)
        if top not in BY_VERSION and file is not None:
            files[name] = file
    # The number keeps two files of one name apart. It follows the order of their paths, so that
    # the digest does not depend on the order in which the code opened them.
    read = {Path(os.path.realpath(path)) for path in opened} - set(files.values())
    for index, path in enumerate(sorted(filter(is_users, read))):
        files[f"file:{index:06}:{path.name}"] = path
    digest.json("versions", versions)
    digest.files("code", files.items())
    return tuple(sorted(files))


def _closure(start: set[str]) -> set[str]:
    """Return the modules in `start`, their packages, and the modules that their globals come from.

    `net.py` with `from blocks import Block` gives {"net", "blocks"}; packages in BY_VERSION are
    included, but not followed further.
    """
    modules: set[str] = set()
    pending = list(start & sys.modules.keys())
    while pending:
        name = pending.pop()
        if name in modules:
            continue
        modules.add(name)
        if name.partition(".")[0] in BY_VERSION or _file(name) is None:
            continue
        # Of `import blocks` the global is the module itself; of `from blocks import Block` it is
        # a class whose __module__ is "blocks".
        for value in list(vars(sys.modules[name]).values()):
            origin = value.__name__ if isinstance(value, ModuleType) else _origin(value)
            if origin and origin in sys.modules:
                pending.append(origin)
        package = name.rpartition(".")[0]
        if package:
            pending.append(package)
    return modules


def _origin(value: object) -> str | None:
    # The class of an instance is read instead: it may override attribute access.
    definition = value if isinstance(value, (type, FunctionType)) else type(value)
    origin = definition.__module__
    return origin if isinstance(origin, str) else None


def _file(name: str) -> Path | None:
    """Return a module's file; None if it is built in, the standard library's or edgepack's.

    Also None for the program itself, which contains more than a network: `live` follows its code.
    """
    if name == "__main__":
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or name.partition(".")[0] == "edgepack":
        return None
    path = Path(os.path.realpath(file))
    if is_stdlib(path) or not path.is_file():
        return None
    return path


def is_installed(path: Path) -> bool:
    """Return True if a file belongs to an installed package."""
    return "site-packages" in path.parts or "dist-packages" in path.parts


def is_stdlib(path: Path) -> bool:
    """Return True if a file belongs to Python's standard library."""
    return str(path).startswith(_STDLIB) and not is_installed(path)


def is_users(path: Path) -> bool:
    """Return True if a file is neither a package's, nor Python's, edgepack's or the system's."""
    if path.suffix == ".pyc" or str(path).startswith((_OWN, *_SYSTEM)):
        return False
    return path.is_file() and not is_installed(path) and not is_stdlib(path)


def _version(top: str) -> str:
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is not None:
        return str(version)
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
