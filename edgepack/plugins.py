"""Plug-ins: passes, engines and sources of other distributions, found through entry points.

A distribution adds an entry to one of the groups below; the name of the entry is the name of what
it adds:

    [project.entry-points."edgepack.passes"]
    clip = "edgepack_clip:CLIP"

Only distributions that the user installed count: nothing in a model, a bundle or a manifest can
name a file or a package to import. Entry points are read from the metadata of the installed
distributions; a plug-in is imported only when it is used.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgepack.errors import EdgepackError, PluginError

PASSES = "edgepack.passes"
ENGINES = "edgepack.engines"
SOURCES = "edgepack.sources"
METRICS = "edgepack.metrics"
# Names appear in chains, as keys of TOML documents and in file names.
NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Plugin:
    """Entry point of an installed distribution.

    Attributes:
        group: one of the groups above.
        name: name of the pass, engine, source or metric that it adds.
        distribution: name of the distribution.
        version: version of the distribution.
        entry: the entry point.
    """

    group: str
    name: str
    distribution: str
    version: str
    entry: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    def load(self, members: Mapping[str, Callable[[object], bool]]) -> object:
        """Import the plug-in and check that it has the members of its protocol.

        Args:
            members: for each member of the protocol, a function that accepts its value.

        Raises PluginError: plugin-broken, plugin-invalid.
        """
        try:
            value: object = self.entry.load()
        except Exception as error:  # a plug-in may raise anything while it is imported
            raise PluginError(
                "plugin-broken",
                f"the plug-in {self.name!r} of {self} cannot be imported",
                why=f"{self.entry.value}: {type(error).__name__}: {error}",
                hint=f"repair it, or remove it: pip uninstall {self.distribution}",
            ) from error
        # A missing member is None, which no function accepts.
        for member, accepts in members.items():
            if not accepts(getattr(value, member, None)):
                raise PluginError(
                    "plugin-invalid",
                    f"the plug-in {self.name!r} of {self} does not implement {self.group}",
                    why=f"{self.entry.value} has no valid {member}",
                    hint=f"repair it, or remove it: pip uninstall {self.distribution}",
                )
        return value

    def digest(self) -> str:
        """Return the SHA-256 of the plug-in's code, for the keys of cached results."""
        total = hashlib.sha256(str(self).encode())
        for path in self._code():
            total.update(path.read_bytes())
        return total.hexdigest()

    def _code(self) -> list[Path]:
        """Return the Python files of the package, or the one file, that the entry point names."""
        spec = find_spec(self.entry.module.partition(".")[0])
        if spec is None:
            return []
        # A package has folders, even several if it is a namespace; a module is one file.
        if spec.submodule_search_locations:
            paths: list[Path] = []
            for folder in spec.submodule_search_locations:
                paths += Path(folder).rglob("*.py")
            return sorted(paths)
        return [Path(spec.origin)] if spec.origin else []


def credit(plugin: Plugin | None) -> tuple[str, ...]:
    """Return the note of the ledger on the origin of a stage; none for edgepack's own."""
    return () if plugin is None else (f"Provided by the plug-in {plugin}.",)


@contextmanager
def attribute_faults(plugin: Plugin | None) -> Iterator[None]:
    """Turn any fault of a plug-in's code into an error that names it; None leaves faults alone.

    Raises PluginError: plugin-failed. An EdgepackError of the plug-in is raised as it is.
    """
    try:
        yield
    except EdgepackError:
        raise
    except Exception as error:
        if plugin is None:
            raise
        raise PluginError(
            "plugin-failed",
            f"the plug-in {plugin.name!r} of {plugin} failed",
            why=f"{type(error).__name__}: {error}",
            hint=f"report it to the authors of {plugin.distribution}",
        ) from error


@cache
def list_plugins(group: str, reserved: Collection[str]) -> Mapping[str, Plugin]:
    """Return the plug-ins of a group by name, without importing them.

    Args:
        group: name of the entry points.
        reserved: names of edgepack's own entries, and other names that a plug-in must not have.

    Raises PluginError: plugin-collision for a reserved name, or one of two distributions;
        plugin-name for a name that cannot be written in a chain or a document.
    """
    plugins: dict[str, Plugin] = {}
    for entry in metadata.entry_points(group=group):
        plugin = _describe(group, entry)
        if not NAME.fullmatch(plugin.name):
            raise PluginError(
                "plugin-name",
                f"the plug-in {plugin.name!r} of {plugin} has no valid name",
                why=f"names in {group} are lower-case letters, digits, - and _",
                hint=f"rename its entry point, or remove it: pip uninstall {plugin.distribution}",
            )
        # Two distributions with a pass `sparse`: a chain could not say which of them it means.
        other = "edgepack" if plugin.name in reserved else ""
        if plugin.name in plugins:
            other = str(plugins[plugin.name])
        if other:
            raise PluginError(
                "plugin-collision",
                f"the plug-in {plugin.name!r} of {plugin} has a name that is taken",
                why=f"{other} defines {plugin.name!r} already",
                hint=f"rename its entry point, or remove it: pip uninstall {plugin.distribution}",
            )
        plugins[plugin.name] = plugin
    return plugins


def _describe(group: str, entry: metadata.EntryPoint) -> Plugin:
    distribution = entry.dist
    if distribution is None:
        return Plugin(group, entry.name, "an unknown distribution", "", entry)
    return Plugin(group, entry.name, distribution.name, distribution.version, entry)


def is_callable(value: object) -> bool:
    """Return True for a function or a method."""
    return callable(value)


def is_text(value: object) -> bool:
    """Return True for text that is not empty."""
    return isinstance(value, str) and bool(value)


def is_subclass_of(base: type) -> Callable[[object], bool]:
    """Return a function that accepts the subclasses of a class."""
    return lambda value: inspect.isclass(value) and issubclass(value, base)
