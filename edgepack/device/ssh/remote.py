"""What edgepack does on a device; sent through ssh to its Python, which may be 3.8.

Every command prints a line with a random token before and after: what a login shell prints
stands outside of the two, and where the second is missing the link was cut. The second line
holds the answer as JSON.

The standard input of a command that needs none is its lifeline: when it ends, the link or
edgepack is gone, and what runs is ended with it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys
import time
from contextlib import suppress
from typing import Any

# Imports that take a slow device long stand where they are needed.

CHUNK = 1 << 20
# Seconds after which what an earlier command left belongs to nobody.
ABANDONED = 86400
PARTIAL = ".part"
RUN = "run-"
# Seconds between two looks at whether anybody still waits for a bundle.
POLL = 2
# What a file system needs beside the bytes of a file.
MARGIN = 1 << 16


def look(place: str, name: str, digest: str, size: int) -> dict[str, Any]:
    """Find where a file goes, and what is there of it.

    Args:
        place: the file's place; "" for edgepack's own folder, the first that takes it.
        name: of the file, where the place is a folder.
        digest: its SHA-256.
        size: in bytes.

    Returns {"final", "part", "have" (bytes of it in `part`), "whole" (`final` is it already)},
    or {"refused": [fault]} where no folder takes it.
    """
    if place:
        final = _target(place, name)
        folder, start = os.path.dirname(final), f".{os.path.basename(final)}."
        _sweep(folder, start, PARTIAL)
        part = os.path.join(folder, f"{start}{digest[:16]}{PARTIAL}")
        return _state(part, final, digest, size)
    refused = []
    for folder in _caches():
        part = os.path.join(folder, digest + PARTIAL)
        try:
            _own(folder)
            _sweep(folder, RUN, "")
            _sweep(folder, "", PARTIAL)
            return _state(part, os.path.join(folder, digest), digest, size)
        except OSError as error:
            refused.append(_fault(error))
    return {"refused": refused}


def append(part: str, offset: int) -> dict[str, Any]:
    """Write what comes through standard input, from an offset on."""
    with open(part, "r+b") as file:
        file.seek(offset)
        while True:
            chunk = os.read(0, CHUNK)
            if not chunk:
                return {}
            file.write(chunk)


def settle(part: str, final: str, digest: str, name: str) -> dict[str, Any]:
    """Check a whole file and make it durable; one with another SHA-256 is deleted.

    Args:
        part: the file; "" where it is in its place, checked.
        final: its place.
        digest: its SHA-256.
        name: "" for a file that `place` is to put there. Another is put there now, and gets that
            name in a folder of this command's alone: who else uses it may delete it meanwhile.

    Returns {"held"}, with the "path" of what held.
    """
    if part and _sha256(part) != digest:
        os.unlink(part)
        return {"held": False}
    if part:
        _sync(part)
    if not name:
        return {"held": True, "path": part or final}
    if part:
        os.replace(part, final)
    folder = os.path.join(os.path.dirname(final), RUN + sys.argv[2])
    os.mkdir(folder, 0o700)
    path = os.path.join(folder, name)
    try:
        os.link(final, path)
    except OSError:
        # A file system without hard links.
        import shutil

        shutil.copyfile(final, path)
    return {"held": True, "path": path}


def place(part: str, final: str, beside: dict[str, str]) -> dict[str, Any]:
    """Put a settled file in its place, by one rename, and then what accompanies it.

    Args:
        part: the file; "" where it is in its place already.
        final: its place.
        beside: suffix to text of the files beside it; one without text is deleted, since it would
            belong to the file that was there before.
    """
    if part:
        _rename(part, final)
    for suffix, text in beside.items():
        if not text:
            with suppress(FileNotFoundError):
                os.unlink(final + suffix)
            continue
        folder, name = os.path.split(final)
        temporary = os.path.join(folder, f".{name}{suffix}{PARTIAL}")
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.fsencode(text))
        _sync(temporary)
        _rename(temporary, final + suffix)
    return {}


def _rename(part: str, final: str) -> None:
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(part, 0o666 & ~mask)
    os.replace(part, final)
    _sync(os.path.dirname(final))


def clean(paths: list[str]) -> dict[str, Any]:
    """Delete files and folders, and edgepack's folder where nothing is left in it."""
    import shutil

    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
    for folder in {os.path.dirname(path) for path in paths} & set(_caches()):
        with suppress(OSError):
            os.rmdir(folder)
    return {}


def run(arguments: list[str], seconds: float, stream: bool) -> dict[str, Any]:
    """Run a bundle: {"status"}, negative where a signal ended it, or {"late": true}.

    Args:
        arguments: the bundle and its command.
        seconds: that it may take.
        stream: whether standard input is for the bundle; it is the lifeline else.
    """
    import subprocess
    import threading

    child = subprocess.Popen(
        [sys.argv[1], *arguments],
        stdin=None if stream else subprocess.DEVNULL,
        cwd=os.path.dirname(arguments[0]),
        # A session of its own, so that all it starts can be ended with it.
        start_new_session=True,
    )
    if not stream:
        threading.Thread(target=_hold, args=(child.pid,), daemon=True).start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            return {"status": child.wait(min(POLL, max(0, end - time.monotonic())))}
        if not os.path.exists(arguments[0]):
            # A link that went silent was given up, and another has cleaned up.
            break
    _end(child.pid)
    return {"late": True}


def _hold(group: int) -> None:
    while os.read(0, CHUNK):
        pass
    _end(group)


def _end(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _caches() -> list[str]:
    """Folders that may be edgepack's, the best first."""
    home = os.path.expanduser("~")
    kept = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    own = f"edgepack-{os.geteuid()}"
    temporary = (os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp")  # noqa: S108
    folders = [os.path.join(kept, "edgepack"), *(os.path.join(folder, own) for folder in temporary)]
    return [folder for folder in dict.fromkeys(folders) if os.path.isabs(folder)]


def _own(folder: str) -> None:
    """Make a folder that is this user's alone; another's may stand at that name in /tmp."""
    os.makedirs(folder, 0o700, exist_ok=True)
    for found in (os.lstat(folder), os.stat(folder)):
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", folder)
    os.chmod(folder, 0o700)


def _sweep(folder: str, start: str, end: str) -> None:
    """Delete what commands left that were cut off for good, by how its name starts and ends."""
    for entry in os.scandir(folder):
        if entry.name.startswith(start) and entry.name.endswith(end):
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < time.time() - ABANDONED:
                    clean([entry.path])


def _target(path: str, name: str) -> str:
    """The file that a path means; where it is a folder, the file of that name in it."""
    path = os.path.expanduser(path)
    if path.endswith("/") or os.path.isdir(path):
        path = os.path.join(path, name)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", folder)
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "it is neither a file nor a folder", path)
    return os.path.join(os.path.realpath(folder), os.path.basename(path))


def _state(part: str, final: str, digest: str, size: int) -> dict[str, Any]:
    whole = False
    if os.path.isfile(final) and os.path.getsize(final) == size:
        whole = _sha256(final) == digest
    have = size if whole else _begun(part, size)
    if not whole:
        space = os.statvfs(os.path.dirname(part))
        free = space.f_bavail * space.f_frsize
        if free < size - have + MARGIN:
            os.unlink(part)
            told = f"{free / 1e6:.1f} MB are free, {(size - have + MARGIN) / 1e6:.1f} MB are needed"
            raise OSError(errno.ENOSPC, told, os.path.dirname(part))
    return {"final": final, "part": part, "have": have, "whole": whole}


def _begun(part: str, size: int) -> int:
    """How much of a file is there, after which it is one that only this user writes."""
    try:
        found = os.lstat(part)
    except FileNotFoundError:
        pass
    else:
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        if own and found.st_size <= size:
            return found.st_size
        os.unlink(part)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return 0


def _sha256(path: str) -> str:
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fault(error: OSError) -> dict[str, str]:
    return {
        "errno": errno.errorcode.get(error.errno or 0, ""),
        "text": error.strerror or str(error),
        "path": str(error.filename or ""),
    }


VERBS = {verb.__name__: verb for verb in (look, append, settle, place, clean, run)}


def main(request: str) -> None:
    """Carry out one command: {"verb", and its arguments}. The token is sys.argv[2]."""
    arguments = json.loads(request)
    for stream in (1, 2):
        _say(stream, "")
    try:
        answer = VERBS[arguments.pop("verb")](**arguments)
    except OSError as error:
        answer = {"refused": [_fault(error)]}
    _say(1, " " + json.dumps(answer))


def _say(stream: int, text: str) -> None:
    # Nobody may be listening any more; what came until then is still of use.
    with suppress(BrokenPipeError):
        os.write(stream, f"\n{sys.argv[2]}{text}\n".encode())
