"""Program that runs edgepack's commands on a device; sent through ssh to Python 3.8 or newer.

Every command prints a line with a random token before and after its output. Text of the login
shell is outside the two lines, and a missing second line means that the link was cut. The second
line holds the answer as JSON.

The standard input of a command without input is its lifeline: at its end the link or edgepack is
gone, and the command is killed.
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

# Modules that are slow to import on small devices are imported by the functions that use them.

CHUNK = 1 << 20
# Age in seconds at which files of an earlier command are abandoned and may be deleted.
ABANDONED = 86400
PARTIAL = ".part"
RUN = "run-"
# Seconds between checks that the bundle still exists.
POLL = 2
# Bytes that a file system needs in addition to a file's contents.
MARGIN = 1 << 16


def look(place: str, name: str, digest: str, size: int) -> dict[str, object]:
    """Find the target of a file and the bytes of it that already exist.

    Args:
        place: path for the file; "" for the first usable folder of edgepack's own.
        name: name of the file if `place` is a folder.
        digest: SHA-256 of the file.
        size: size of the file in bytes.

    Returns {"final", "part", "have" (bytes of it in `part`), "whole" (`final` is the file)}, or
    {"refused": [fault]} if no folder is usable.
    """
    # For place="/opt/m.edgepack": final is /opt/m.edgepack, part /opt/.m.edgepack.3f9c….part.
    # For place="": final is ~/.cache/edgepack/DIGEST, part the same with .part.
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


def append(part: str, offset: int) -> dict[str, object]:
    """Append standard input to a partial file, from an offset on."""
    with open(part, "r+b") as file:
        file.seek(offset)
        while True:
            chunk = os.read(0, CHUNK)
            if not chunk:
                return {}
            file.write(chunk)


def settle(part: str, final: str, digest: str, name: str) -> dict[str, object]:
    """Verify a complete file and sync it to disk; delete it if its SHA-256 differs.

    Args:
        part: path of the file; "" if it is verified and at `final` already.
        final: final path.
        digest: expected SHA-256.
        name: "" for a file that `place` renames later. Any other file is renamed here, and gets
            this name in a folder for this command only, since another command may delete the
            shared file meanwhile.

    Returns {"held"}, and the "path" of a file that is intact.
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
        # Not every file system has hard links: an SD card with FAT has none.
        import shutil

        shutil.copyfile(final, path)
    return {"held": True, "path": path}


def place(part: str, final: str, beside: dict[str, str]) -> dict[str, object]:
    """Rename a settled file to its final path, then write the files that accompany it.

    Args:
        part: path of the file; "" if it is at `final` already.
        final: final path.
        beside: text of each accompanying file by suffix. An empty text deletes the file, which
            would belong to an older bundle.
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


def clean(paths: list[str]) -> dict[str, object]:
    """Delete files and folders, and edgepack's own folder if it becomes empty."""
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


def run(arguments: list[str], seconds: float, stream: bool) -> dict[str, object]:
    """Run a bundle: {"status"}, negative if a signal ended it, or {"late": true}.

    Args:
        arguments: the bundle and its command.
        seconds: time limit.
        stream: pass standard input to the bundle; if False, it is the lifeline.
    """
    import subprocess
    import threading

    child = subprocess.Popen(
        [sys.argv[1], *arguments],
        stdin=None if stream else subprocess.DEVNULL,
        cwd=os.path.dirname(arguments[0]),
        # In a separate session, so that its child processes can be killed with it.
        start_new_session=True,
    )
    if not stream:
        threading.Thread(target=_watch_lifeline, args=(child.pid,), daemon=True).start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            return {"status": child.wait(min(POLL, max(0, end - time.monotonic())))}
        if not os.path.exists(arguments[0]):
            # edgepack gave up a silent link and deleted the bundle over a new one.
            break
    _kill(child.pid)
    return {"late": True}


def _watch_lifeline(group: int) -> None:
    while os.read(0, CHUNK):
        pass
    _kill(group)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _caches() -> list[str]:
    """List the candidates for edgepack's own folder, the best first."""
    # For root without any variables: ~/.cache/edgepack, /tmp/edgepack-0, /var/tmp/edgepack-0.
    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    user = f"edgepack-{os.geteuid()}"
    temporary = (os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp")  # noqa: S108
    folders = [os.path.join(cache, "edgepack")]
    folders += [os.path.join(folder, user) for folder in temporary]
    return [folder for folder in dict.fromkeys(folders) if os.path.isabs(folder)]


def _own(folder: str) -> None:
    """Create a private folder; refuse one of another user's, who may create any name in /tmp."""
    # lstat for a symbolic link of another user's, stat for its target.
    os.makedirs(folder, 0o700, exist_ok=True)
    for status in (os.lstat(folder), os.stat(folder)):
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", folder)
    os.chmod(folder, 0o700)


def _sweep(folder: str, start: str, end: str) -> None:
    """Delete abandoned files of interrupted commands, by the start and the end of the name."""
    for entry in os.scandir(folder):
        if entry.name.startswith(start) and entry.name.endswith(end):
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < time.time() - ABANDONED:
                    clean([entry.path])


def _target(path: str, name: str) -> str:
    """Resolve a path to the path of a file; if it is a folder, to `name` in it."""
    path = os.path.expanduser(path)
    if path.endswith("/") or os.path.isdir(path):
        path = os.path.join(path, name)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", folder)
    # realpath of the folder alone: a symbolic link at the path itself is replaced, not followed.
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "it is neither a file nor a folder", path)
    return os.path.join(os.path.realpath(folder), os.path.basename(path))


def _state(part: str, final: str, digest: str, size: int) -> dict[str, object]:
    complete = False
    if os.path.isfile(final) and os.path.getsize(final) == size:
        complete = _sha256(final) == digest
    if complete:
        return {"final": final, "part": part, "have": size, "whole": True}
    have = _open_partial(part, size)
    space = os.statvfs(os.path.dirname(part))
    free = space.f_bavail * space.f_frsize
    required = size - have + MARGIN
    if free < required:
        os.unlink(part)
        text = f"{free / 1e6:.1f} MB are free, {required / 1e6:.1f} MB are needed"
        raise OSError(errno.ENOSPC, text, os.path.dirname(part))
    return {"final": final, "part": part, "have": have, "whole": False}


def _open_partial(part: str, size: int) -> int:
    """Return the length of a partial file, creating it empty if it is absent or not usable."""
    # A link, a file of another user's or one with a second name could be changed by others
    # between the check of its SHA-256 and the renaming, so it is replaced.
    try:
        status = os.lstat(part)
    except FileNotFoundError:
        pass
    else:
        regular = stat.S_ISREG(status.st_mode)
        private = status.st_uid == os.geteuid() and status.st_nlink == 1
        if regular and private and status.st_size <= size:
            return status.st_size
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
    """Run one command: {"verb", and its arguments}. The token is sys.argv[2]."""
    arguments = json.loads(request)
    for stream in (1, 2):
        _say(stream, "")
    try:
        answer = VERBS[arguments.pop("verb")](**arguments)
    except OSError as error:
        answer = {"refused": [_fault(error)]}
    _say(1, " " + json.dumps(answer))


def _say(stream: int, text: str) -> None:
    # The link may be gone already; the command's effects are still useful to the next one.
    with suppress(BrokenPipeError):
        os.write(stream, f"\n{sys.argv[2]}{text}\n".encode())
