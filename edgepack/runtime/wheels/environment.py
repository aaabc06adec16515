"""The folder that `setup` makes: a virtual environment as Python itself understands it (PEP 405).

A link to the interpreter, a pyvenv.cfg beside it, and site-packages. Neither `venv` nor `ensurepip`
nor pip is used, since the Pythons of small devices lack one or another; pip can be used on it from
outside: pip --python DIR.

The folder appears by one rename, whole. What a killed `setup` left goes with the next one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Dict, Iterator, Mapping, Optional

from ..errors import DeviceError
from .wheel import Wheel

# First into the new folder, where it is locked, and written last: a folder in which it says what
# was installed is whole.
MARK = "edgepack.json"
CONFIG = "pyvenv.cfg"
SITE = os.path.join("lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")


def base_python() -> str:
    """The interpreter itself, where this one is a virtual environment's."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@dataclass(frozen=True)
class Environment:
    """What an environment is made of.

    Attributes:
        python: the interpreter that it links to.
        wheels: name of each wheel to its SHA-256.
        files: path below site-packages to the wheel that has it.
        system_packages: whether the system's packages can be imported too.
    """

    python: str
    wheels: Mapping[str, str]
    files: Mapping[str, Wheel]
    system_packages: bool

    @property
    def mark(self) -> Dict[str, Any]:
        """What a whole folder says that it is made of."""
        return {"wheels": dict(self.wheels), "python": self.python, "config": self._config()}

    def _config(self) -> str:
        return "home = {}\ninclude-system-site-packages = {}\nversion = {}.{}.{}\n".format(
            os.path.dirname(self.python),
            "true" if self.system_packages else "false",
            *sys.version_info[:3],
        )

    def make(self, place: str) -> bool:
        """Make sure that it stands at a place; False where it did already, whole.

        Raises DeviceError where something else stands there, where another process is at it, or
        where it cannot be written; then what was there before is untouched.
        """
        parent, name = os.path.split(place)
        new, old = (os.path.join(parent, ".{}.{}".format(name, kind)) for kind in ("new", "old"))
        try:
            if self._read_mark(place) == self.mark and self._intact(place):
                _sweep(new, old)
                return False
            os.makedirs(parent, exist_ok=True)
            with _locked(new) as mark:
                try:
                    _clear(new)
                    if os.path.lexists(old):
                        shutil.rmtree(old)
                    self._fill(new)
                    mark.write(json.dumps(self.mark, sort_keys=True).encode("ascii") + b"\n")
                    mark.flush()
                    # Some thousand files: one sync of everything is sooner done than one of each.
                    os.sync()
                    _put(new, place, old)
                except BaseException:
                    shutil.rmtree(new, ignore_errors=True)
                    raise
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise _unwritable(place, error) from error
        return True

    def _read_mark(self, place: str) -> Optional[Dict[str, Any]]:
        """What an earlier `setup` left; None where there is nothing."""
        try:
            if not os.listdir(place):
                return None
            with open(os.path.join(place, MARK), encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found, dict) and set(found) == set(self.mark):
                return found
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.lexists(place):
                return None
        except (IsADirectoryError, ValueError, RecursionError):
            pass  # Told below: whatever it is, `setup` did not make it.
        raise _occupied(place)

    def _intact(self, place: str) -> bool:
        """Whether every file is there as the wheels have it."""
        try:
            link = os.readlink(os.path.join(place, "bin", "python3"))
            with open(os.path.join(place, CONFIG), encoding="utf-8") as config:
                if link != self.python or config.read() != self._config():
                    return False
            for path, wheel in self.files.items():
                with open(os.path.join(place, SITE, path), "rb") as file:
                    if any(file.read(len(chunk)) != chunk for chunk in wheel.chunks(path)):
                        return False
                    if file.read(1):
                        return False
        except (OSError, ValueError):
            return False
        return True

    def _fill(self, new: str) -> None:
        os.mkdir(os.path.join(new, "bin"))
        os.symlink(self.python, os.path.join(new, "bin", "python3"))
        os.symlink("python3", os.path.join(new, "bin", "python"))
        with open(os.path.join(new, CONFIG), "w", encoding="utf-8") as config:
            config.write(self._config())
        for path, wheel in self.files.items():
            target = os.path.join(new, SITE, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "xb") as file:
                for chunk in wheel.chunks(path):
                    file.write(chunk)


@contextmanager
def _locked(new: str) -> Iterator[BinaryIO]:
    """The mark of a new folder, empty, and locked while this process lives: so what a killed one
    left can be told from what another one is making."""
    import fcntl

    path = os.path.join(new, MARK)
    while True:
        try:
            os.mkdir(new)
        except FileExistsError:
            left = os.lstat(new)
            # Its contents are about to be deleted: a link, or what another user put into a shared
            # folder, is nothing that a killed `setup` left.
            if not stat.S_ISDIR(left.st_mode) or left.st_uid != os.geteuid():
                raise _occupied(new) from None
        with open(path, "ab") as mark:
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DeviceError(
                    "setup-running",
                    "another process is setting up the same folder",
                    why="{} is locked".format(path),
                    hint="wait until it is done",
                ) from error
            # Between the opening and the lock its owner may have put it in its place.
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(mark.fileno())):
                mark.truncate(0)
                yield mark
                return


def _clear(new: str) -> None:
    for entry in os.listdir(new):
        path = os.path.join(new, entry)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif entry != MARK:
            os.unlink(path)


def _sweep(new: str, old: str) -> None:
    """Delete what a killed `setup` left beside a whole folder, where that can be done."""
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(new):
        with suppress(OSError, DeviceError), _locked(new):
            shutil.rmtree(new)


def _put(new: str, place: str, old: str) -> None:
    """Rename the new folder into its place, and what stood there out of it."""
    replaced = os.path.isdir(place) and bool(os.listdir(place))
    if replaced:
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if replaced:
            os.rename(old, place)
        raise
    os.sync()


def _occupied(place: str) -> DeviceError:
    return DeviceError(
        "setup-occupied",
        "there is something else in the way: {}".format(place),
        why="`setup` did not make it, so it does not replace it",
        hint="name a folder that does not exist yet",
    )


def _unwritable(place: str, error: OSError) -> DeviceError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DeviceError(
        "setup-full" if full else "setup-unwritable",
        "the environment cannot be written: {}".format(place),
        why=error.strerror or str(error),
        hint="free some space: unpacked, wheels take three to four times their size"
        if full
        else "name a folder that may be written",
    )
