"""Virtual environment that `setup` creates, in the layout of PEP 405.

It consists of a link to the interpreter, pyvenv.cfg and site-packages. Neither `venv` nor
`ensurepip` nor pip is used, since the Pythons of small devices lack one or another; pip works on it
from outside: pip --python DIR.

The folder appears complete, by one rename. The next `setup` removes the leftovers of a killed one.
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
from typing import BinaryIO, Dict, Iterator, Mapping, Optional

from ..errors import DeviceError
from .wheel import Wheel

# Created and locked first in the new folder, and written last: a folder whose mark lists the
# installed wheels is complete.
MARK = "edgepack.json"
CONFIG = "pyvenv.cfg"
MAJOR, MINOR = sys.version_info[:2]
SITE = os.path.join("lib", f"python{MAJOR}.{MINOR}", "site-packages")


def base_python() -> str:
    """Return the interpreter, or the one behind it in a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@dataclass(frozen=True)
class Environment:
    """Contents of an environment.

    Attributes:
        python: the interpreter that it links to.
        wheels: name of each wheel -> its SHA-256.
        files: path below site-packages -> the wheel that contains it.
        system_packages: the system's packages can be imported too.
    """

    python: str
    wheels: Mapping[str, str]
    files: Mapping[str, Wheel]
    system_packages: bool

    @property
    def mark(self) -> Dict[str, object]:
        """Contents of the mark in a complete folder."""
        return {"wheels": dict(self.wheels), "python": self.python, "config": self._config()}

    def _config(self) -> str:
        return (
            f"home = {os.path.dirname(self.python)}\n"
            f"include-system-site-packages = {str(self.system_packages).lower()}\n"
            f"version = {MAJOR}.{MINOR}.{sys.version_info[2]}\n"
        )

    def make(self, folder: str) -> bool:
        """Create the environment in a folder; return False if it was there already, intact.

        Raises DeviceError if the folder has other contents, if another process is creating it, or
        if it cannot be written; the previous contents then stay.
        """
        parent, name = os.path.split(folder)
        new, old = (os.path.join(parent, f".{name}.{kind}") for kind in ("new", "old"))
        try:
            if self._read_mark(folder) == self.mark and self._intact(folder):
                _sweep(new, old)
                return False
            os.makedirs(parent, exist_ok=True)
            with _lock_folder(new) as mark:
                try:
                    _clear(new)
                    if os.path.lexists(old):
                        shutil.rmtree(old)
                    self._fill(new)
                    mark.write(json.dumps(self.mark, sort_keys=True).encode("ascii") + b"\n")
                    mark.flush()
                    # One sync of everything is faster than an fsync of several thousand files.
                    os.sync()
                    _put(new, folder, old)
                except BaseException:
                    shutil.rmtree(new, ignore_errors=True)
                    raise
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        return True

    def _read_mark(self, folder: str) -> Optional[Dict[str, object]]:
        """Return the mark of an earlier `setup`; None if the folder is empty or missing."""
        try:
            if not os.listdir(folder):
                return None
            with open(os.path.join(folder, MARK), encoding="utf-8") as file:
                mark = json.load(file)
            if isinstance(mark, dict) and set(mark) == set(self.mark):
                return mark
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.lexists(folder):
                return None
        except (IsADirectoryError, ValueError, RecursionError):
            pass  # Reported below: `setup` did not create it.
        raise _occupied_error(folder)

    def _intact(self, folder: str) -> bool:
        """Return True if every file is present and equal to the wheels' contents."""
        try:
            link = os.readlink(os.path.join(folder, "bin", "python3"))
            with open(os.path.join(folder, CONFIG), encoding="utf-8") as config:
                if link != self.python or config.read() != self._config():
                    return False
            for path, wheel in self.files.items():
                with open(os.path.join(folder, SITE, path), "rb") as file:
                    # Compare with the wheel itself, not with hashes on the disk.
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
def _lock_folder(new: str) -> Iterator[BinaryIO]:
    """Create a new folder with an empty mark, locked while this process lives.

    The lock tells a folder that another process is filling from the leftovers of a killed one.
    """
    import fcntl

    path = os.path.join(new, MARK)
    while True:
        try:
            os.mkdir(new)
        except FileExistsError:
            status = os.lstat(new)
            # Its contents will be deleted, so be sure that a killed `setup` of this user left it:
            # not a link, and not another user's folder in a shared parent.
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise _occupied_error(new) from None
        with open(path, "ab") as mark:
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DeviceError(
                    "setup-running",
                    "another process is setting up the same folder",
                    why=f"{path} is locked",
                    hint="wait until it is done",
                ) from error
            # Its owner may have renamed it between the opening and the lock: try again.
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
    """Delete the leftovers of a killed `setup` beside a complete folder, if possible."""
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(new):
        with suppress(OSError, DeviceError), _lock_folder(new):
            shutil.rmtree(new)


def _put(new: str, folder: str, old: str) -> None:
    """Rename the new folder to its target, moving previous contents aside."""
    # An empty folder needs no backup: rename replaces it.
    replaced = os.path.isdir(folder) and bool(os.listdir(folder))
    if replaced:
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if replaced:
            os.rename(old, folder)
        raise
    os.sync()


def _occupied_error(folder: str) -> DeviceError:
    return DeviceError(
        "setup-occupied",
        f"the folder is in use for something else: {folder}",
        why="`setup` did not create it and does not replace it",
        hint="name a folder that does not exist yet",
    )


def _unwritable(folder: str, error: OSError) -> DeviceError:
    code, hint = "setup-unwritable", "name a writable folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        code = "setup-full"
        hint = "free some space: unpacked wheels take three to four times their size"
    return DeviceError(
        code,
        f"the environment cannot be written: {folder}",
        why=error.strerror or str(error),
        hint=hint,
    )
